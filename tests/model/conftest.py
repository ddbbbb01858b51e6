"""No implicit promotion in the model. (optax relies on it.)"""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion() -> Iterator[None]:
  with jax.numpy_dtype_promotion('strict'):
    yield
