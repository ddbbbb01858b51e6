"""Of the model: no implicit promotion, and columns as on an accelerator."""

from collections.abc import Iterator

import jax
import pytest

from infoprune_jax.model import head_columns


@pytest.fixture(autouse=True)
def _strict_promotion() -> Iterator[None]:
  with jax.numpy_dtype_promotion('strict'):  # (optax relies on it.)
    yield


@pytest.fixture(autouse=True)
def _aligned(monkeypatch) -> None:
  monkeypatch.setattr(head_columns, 'alignment', lambda: 128)
