"""Chooses the kernels of a model on a mesh: the fastest that run there."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.kernels import gpu_attention
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime.progress import logger

LANES = 128  # of a TPU
CUDNN_CAPABILITY = (9, 0)  # or later, of packed sequences
PALLAS_CAPABILITY = (8, 0)  # or later, of bfloat16 in JAX's kernel for GPUs
HOPPER_CAPABILITY = (9, 0)
# cuDNN's time grows with the segments that a program has room for, and that of
# Pallas does not. Room for one more in this many tokens makes cuDNN slower: on
# one H200, a layer took 2.4 ms with room for 16 segments in 1,024 tokens, 5.7 ms
# for 64 and 19.0 ms for 256, beside 2.6 ms by Pallas. Head dimension 64.
TOKENS_PER_SEGMENT, MEASURED_HEAD_DIM = 64, 64
# Where a kernel runs. 'xla' runs anywhere.
_PLATFORM = {
  **{'splash': 'tpu', 'tpu': 'tpu'},
  **{'cudnn': 'gpu', 'pallas': 'gpu', 'hopper': 'gpu'},
}
SMALL_TPUS = ('TPU v2', 'TPU v3', 'TPU v4', 'TPU v4 lite')


class _Choice(NamedTuple):
  """The kernels of an option on some devices, the fastest first."""

  platform: str
  kernels: tuple[str, ...]  # then 'xla'
  capability: tuple[int, ...] = ()  # of the GPU, or later


# The first line that fits a device counts. Attention is the same for scoring
# and training, for any length, and for one document a sequence or many; see
# `prefers_pallas` for the exception. Measured on one H200 with jax 0.11.2, a Llama
# of 124M parameters and 64 sequences of 1,024 tokens in bfloat16. Forward and
# backward, a layer's attention took 1.8 ms by cuDNN with one document a
# sequence; with documents of 83 tokens (median) 2.4 ms by cuDNN, 2.6 ms by
# Pallas and 7.6 ms by XLA. Unmeasured: Ampere, Ada and Blackwell.
# `benchmarks/on_gpu.py` measures them.
_FASTEST = {
  'attention': (
    _Choice('tpu', ('splash',)),
    _Choice('gpu', ('cudnn', 'pallas'), CUDNN_CAPABILITY),
    _Choice('gpu', ('pallas',)),
  ),
  'loss_kernel': (
    _Choice('tpu', ('tpu',)),
    _Choice('gpu', ('hopper',)),
  ),
  'mlp_kernel': (_Choice('gpu', ('hopper',)),),
}


@functools.lru_cache(maxsize=16)  # Each choice is logged once.
def resolve(
  config: ModelConfig,
  mesh: Mesh,
  batch_size: int,
  sequence_length: int,
  statistics: tuple[str, ...] = ('nll',),
) -> ModelConfig:
  """The config with 'auto' replaced, for a forward pass on a mesh.

  Args:
    config: The model, in the dtype of the computation.
    mesh: The mesh, whose devices decide.
    batch_size: Sequences of the global batch.
    sequence_length: Tokens of a sequence.
    statistics: The statistics to compute of each token.

  Raises:
    UserError: a kernel that the config names does not run there; the reason is
      given. Or the model does not take sequences of this length.
  """
  check_length(config, sequence_length)
  tokens = batch_size * sequence_length
  obstacles = {
    'attention': {
      'splash': lambda: _no_splash(config, mesh, sequence_length),
      'cudnn': lambda: _no_cudnn(config, mesh, sequence_length),
      'pallas': lambda: _no_pallas(config, mesh, sequence_length),
    },
    'loss_kernel': {
      'tpu': lambda: _not_nll(statistics) or _no_tpu(config, mesh),
      'hopper': lambda: (
        _not_nll(statistics) or _no_hopper_loss(config, mesh, tokens)
      ),
    },
    'mlp_kernel': {'hopper': lambda: _no_hopper_mlp(config, mesh, tokens)},
  }
  chosen = {
    name: _choose(name, config, mesh, obstacles[name]) for name in obstacles
  }
  return dataclasses.replace(config, **chosen)


def check_length(config: ModelConfig, sequence_length: int) -> None:
  """Raises `UserError` if a model has no positions for so long a sequence."""
  limits = [
    kind.rope_original_length
    for kind in config.layer_kinds
    if kind.rope_scaling == 'longrope'
  ]
  longest = min([*limits, config.max_positions or sequence_length])
  if sequence_length > longest:
    raise UserError(
      f'sequence_length is {sequence_length}, but the model takes sequences of '
      f'at most {longest} tokens: lower it.'
    )


@functools.lru_cache(maxsize=16)
def resolve_training(
  config: ModelConfig, mesh: Mesh, sequence_length: int
) -> ModelConfig:
  """The config with 'auto' replaced, for a training step on a mesh.

  The loss and the MLP are always XLA's: their kernels have no backward pass.

  Args:
    config: The model.
    mesh: The mesh, whose devices decide.
    sequence_length: Tokens of a sequence.

  Raises:
    UserError: the attention that the config names does not run there; the
      reason is given.
  """
  check_length(config, sequence_length)
  obstacles = {
    'splash': lambda: _no_splash(config, mesh, sequence_length),
    'cudnn': lambda: (
      _odd_length(sequence_length) or _no_cudnn(config, mesh, sequence_length)
    ),
    'pallas': lambda: _no_pallas(config, mesh, sequence_length),
  }
  attention = _choose('attention', config, mesh, obstacles)
  return dataclasses.replace(
    config, attention=attention, loss_kernel='xla', mlp_kernel='xla'
  )


def prefers_pallas(
  config: ModelConfig, mesh: Mesh, sequence_length: int, limit: int
) -> bool:
  """Whether Pallas is faster than cuDNN with room for so many segments.

  Args:
    config: A model whose 'auto' became 'cudnn', from `resolve_training`.
    mesh: The mesh, whose devices decide.
    sequence_length: Tokens of a sequence.
    limit: The segments of a sequence that a program has room for.
  """
  slower = limit * TOKENS_PER_SEGMENT > sequence_length
  measured = config.head_dim <= MEASURED_HEAD_DIM
  prefers = (
    slower and measured and not _no_pallas(config, mesh, sequence_length)
  )
  if prefers:
    logger.info(
      'model.attention: pallas, because cudnn is slower with room for %d '
      'segments in each sequence',
      limit,
    )
  return prefers


def _choose(
  name: str,
  config: ModelConfig,
  mesh: Mesh,
  obstacles: Mapping[str, Callable[[], str]],
) -> str:
  """The kernel of an option; for 'auto' the fastest that runs.

  Args:
    name: The option, a key of `_FASTEST`.
    config: The model.
    mesh: The mesh, whose devices decide.
    obstacles: By kernel, a function that returns why it does not run on its
      platform, or '' if it does.
  """
  wanted, device = getattr(config, name), mesh.devices.flat[0]
  reasons = []
  for choice in _fastest(name, device) if wanted == 'auto' else (wanted,):
    if choice == 'xla':
      obstacle = ''
    elif device.platform == _PLATFORM[choice]:
      obstacle = obstacles[choice]()
    else:
      obstacle = (
        f'it runs on a {_PLATFORM[choice].upper()}, the mesh is of '
        f'{device.platform} devices'
      )
    if obstacle and wanted != 'auto':
      raise UserError(
        f"model.{name}='{choice}' does not run here: {obstacle}. Use 'auto', "
        "which takes the fastest that runs, or 'xla', which runs anywhere."
      )
    if obstacle:
      reasons.append(f"'{choice}': {obstacle}")
    else:
      break
  if reasons:
    logger.warning(
      "model.%s: '%s', which is slower than %s",
      *(name, choice, '; than '.join(reasons)),
    )
  elif choice != 'xla':
    logger.info('model.%s: %s', name, choice)
  return choice


def _fastest(name: str, device: Any) -> tuple[str, ...]:
  """The kernels of an option to try on a device, the fastest first."""
  for choice in _FASTEST[name]:
    if device.platform == choice.platform and (
      compute_capability(device) >= choice.capability
    ):
      return (*choice.kernels, 'xla')
  return ('xla',)


def _no_splash(config: ModelConfig, mesh: Mesh, sequence_length: int) -> str:
  """Why splash attention cannot run; '' if it can."""
  num_shards = mesh.num_shards('length')
  if sequence_length % (LANES * num_shards):
    parts = f', cut in {num_shards},' * (num_shards > 1)
    return (
      f'sequences of {sequence_length} tokens{parts} are no multiple of {LANES}'
    )
  if config.head_dim % LANES and config.head_dim != LANES // 2:
    return f'head_dim={config.head_dim} is not 64, nor a multiple of {LANES}'
  return ''


def compute_capability(device: Any) -> tuple[int, ...]:
  """The compute capability of an NVIDIA GPU, such as (9, 0); otherwise ().

  JAX calls an AMD GPU 'gpu' too, and gives its architecture, such as 'gfx942'.
  """
  client = getattr(device, 'client', None)
  if 'rocm' in getattr(client, 'platform_version', ''):
    return ()
  numbers = str(getattr(device, 'compute_capability', '')).split('.')
  if not all(number.isdecimal() for number in numbers):
    return ()
  return tuple(int(number) for number in numbers)


def _described(device: Any) -> str:
  kind = getattr(device, 'compute_capability', None) or 'none that is known'
  return f'{device.device_kind} has {kind}'


def _no_cudnn(config: ModelConfig, mesh: Mesh, sequence_length: int) -> str:
  """Why cuDNN's attention cannot run; '' if it can."""
  device = mesh.devices.flat[0]
  # JAX refuses packed sequences on an older one, but only as it compiles.
  if compute_capability(device) < CUDNN_CAPABILITY:
    return (
      'its packed sequences need an NVIDIA GPU of compute capability 9.0 or '
      f'later, {_described(device)}'
    )
  if config.head_dim % 8 or config.head_dim > 128:
    return f'head_dim={config.head_dim} is no multiple of 8 up to 128'
  return _no_flash(config, mesh, sequence_length)


def _odd_length(sequence_length: int) -> str:
  """Why the backward pass of cuDNN's attention cannot run; '' if it can."""
  return (
    'its backward pass takes sequences of an even number of tokens, not '
    f'{sequence_length}'
  ) * (sequence_length % 2)


def _no_pallas(config: ModelConfig, mesh: Mesh, sequence_length: int) -> str:
  """Why JAX's attention for GPUs cannot run; '' if it can."""
  device = mesh.devices.flat[0]
  if compute_capability(device) < PALLAS_CAPABILITY:
    return (
      'it needs an NVIDIA GPU of compute capability 8.0 or later, '
      f'{_described(device)}'
    )
  if not 16 <= config.head_dim <= 128:
    return f'head_dim={config.head_dim} is not between 16 and 128'
  if gpu_attention.pallas_attention() is None:
    return 'this version of JAX no longer has it'
  return _no_flash(config, mesh, sequence_length)


def _no_flash(config: ModelConfig, mesh: Mesh, sequence_length: int) -> str:
  """What neither attention for GPUs takes; '' if both take the model."""
  if config.dtype != 'bfloat16':
    return f'it computes in bfloat16, the dtype here is {config.dtype}'
  if config.attention_softcap:
    cap = config.attention_softcap
    return f'it cannot cap logits, model.attention_softcap={cap}'
  windows = [kind.window for kind in config.layer_kinds]
  if any(0 < window < sequence_length for window in windows):
    return (
      f'windows of {sorted(set(windows) - {0})} tokens in packed sequences of '
      f'{sequence_length} are not supported'
    )
  num_shards = mesh.num_shards('length')
  return f'the mesh cuts sequences in {num_shards}, it takes whole ones' * (
    num_shards > 1
  )


def _not_nll(statistics: tuple[str, ...]) -> str:
  """Why kernels that compute NLL alone cannot run; '' if they can."""
  others = [name for name in statistics if name != 'nll']
  return (
    f'it computes NLL only, score.statistics asks for {", ".join(others)}'
  ) * bool(others)


def _no_tpu(config: ModelConfig, mesh: Mesh) -> str:
  """Why the kernel of `tpu` cannot run; '' if it can."""
  kind = mesh.devices.flat[0].device_kind
  if config.dtype != 'bfloat16':
    return f'it computes in bfloat16, the dtype here is {config.dtype}'
  if config.logit_softcap:
    return f'it cannot cap logits, model.logit_softcap={config.logit_softcap}'
  if kind in SMALL_TPUS:
    return f'it needs more than the 16 MiB of vector memory of a {kind}'
  # Imports what only a TPU needs.
  from infoprune_jax.model.kernels import tpu

  if not tpu.supports(config.embed_dim):
    return (
      f'embed_dim={config.embed_dim} is no multiple of {tpu.LANES} up to '
      f'{tpu.MAX_WIDTH}'
    )
  return ''


def _no_hopper_loss(config: ModelConfig, mesh: Mesh, tokens: int) -> str:
  """Why the loss of `hopper` cannot run; '' if it can."""
  if config.logit_softcap:
    return f'it cannot cap logits, model.logit_softcap={config.logit_softcap}'
  return _no_hopper(config, mesh, tokens)


def _no_hopper_mlp(config: ModelConfig, mesh: Mesh, tokens: int) -> str:
  """Why the gated MLP of `hopper` cannot run; '' if it can."""
  if config.activation != 'swiglu' or config.mlp_bias:
    return 'it computes SwiGLU without biases, and no other MLP'
  columns = config.mlp_dim // mesh.num_shards('mlp')
  return _no_hopper(config, mesh, tokens, columns)


def _no_hopper(
  config: ModelConfig, mesh: Mesh, tokens: int, columns: int = 0
) -> str:
  """Why no kernel of `hopper` can run; '' if one can.

  Args:
    config: The model.
    mesh: The mesh, whose devices decide.
    tokens: Tokens of the global batch.
    columns: The part of `mlp_dim` on each device; 0 for the loss.
  """
  device = mesh.devices.flat[0]
  # No earlier and no later generation has these instructions.
  if compute_capability(device) != HOPPER_CAPABILITY:
    return (
      f'it needs an NVIDIA GPU of compute capability 9.0, {_described(device)}'
    )
  if config.dtype != 'bfloat16':
    return f'it computes in bfloat16, the dtype here is {config.dtype}'
  # Imports what only a GPU needs.
  from infoprune_jax.model.kernels import hopper

  tokens //= mesh.num_shards('batch') * mesh.num_shards('length')
  if not hopper.supports(tokens, config.embed_dim, columns):
    mlp = f' and mlp_dim={columns} per device' * bool(columns)
    return (
      f'{tokens} tokens per device, embed_dim={config.embed_dim}{mlp} must be '
      f'multiples of 256, 64{" and 64" * bool(columns)}'
    )
  return ''
