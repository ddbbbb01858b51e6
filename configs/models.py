"""Models from 0.3M to 70B parameters, each as edits over `base.model()`.

For a config file: `config.model = models.m124()`, and `config.reference.model`
likewise. Sizes include the embeddings of the vocabulary that is named.
A vocabulary that `mesh.tensor` does not divide (2 divides 50304, but not GPT-2's
50257) is whole on each device, except in the loss.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base


def _edited(**fields: Any) -> ConfigDict:
  model = base.model()
  model.update(fields)
  return model


def _square(num_heads: int, head_dim: int = 64) -> dict[str, int]:
  """Heads that together are as wide as the model, each with its own keys."""
  return dict(
    embed_dim=num_heads * head_dim,
    num_heads=num_heads,
    num_kv_heads=num_heads,
    head_dim=head_dim,
  )


def m0_3() -> ConfigDict:
  """0.29M parameters with a vocabulary of 2048: for tests of a pipeline."""
  return _edited(num_layers=3, mlp_dim=192, **_square(2, head_dim=32))


def m1() -> ConfigDict:
  """1.3M parameters with a vocabulary of 4096: `base.model()` itself."""
  return _edited()


def m8() -> ConfigDict:
  """8.0M parameters with a vocabulary of 8192: a CPU can still train it."""
  fields = {**_square(4), 'num_kv_heads': 2}
  return _edited(num_layers=8, mlp_dim=704, **fields)


def _for_accelerators(**fields: Any) -> ConfigDict:
  return _edited(dtype='bfloat16', **fields)


def m30() -> ConfigDict:
  """29.9M parameters with a vocabulary of 8192."""
  return _for_accelerators(num_layers=8, mlp_dim=1408, **_square(8))


def m124() -> ConfigDict:
  """123.6M parameters with GPT-2's vocabulary, 50257: GPT-2 small in shape."""
  return _for_accelerators(
    num_layers=12,
    mlp_dim=3072,
    activation='gelu',
    **_square(12),
  )


def m350() -> ConfigDict:
  """353.5M parameters with GPT-2's vocabulary, 50257: GPT-2 medium in shape."""
  return _for_accelerators(
    num_layers=24,
    mlp_dim=4096,
    activation='gelu',
    **_square(16),
  )


def b1_3() -> ConfigDict:
  """1.32B parameters with a vocabulary of 50257."""
  return _for_accelerators(
    num_layers=24,
    mlp_dim=5504,
    **_square(16, head_dim=128),
  )


def b8() -> ConfigDict:
  """8.03B parameters with a vocabulary of 128256: Llama 3 8B in shape."""
  fields = {**_square(32, head_dim=128), 'num_kv_heads': 8}
  return _for_accelerators(
    num_layers=32,
    mlp_dim=14336,
    rope_theta=500_000.0,
    norm_epsilon=1e-5,
    tie_embeddings=False,
    **fields,
  )


def b70() -> ConfigDict:
  """70.6B parameters with a vocabulary of 128256: Llama 3 70B in shape."""
  fields = {**_square(64, head_dim=128), 'num_kv_heads': 8}
  return _for_accelerators(
    num_layers=80,
    mlp_dim=28672,
    rope_theta=500_000.0,
    norm_epsilon=1e-5,
    tie_embeddings=False,
    **fields,
  )
