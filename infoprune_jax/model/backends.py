"""Which kernels a model runs with on a mesh: the fastest that fit, said once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.mesh import Mesh
from infoprune_jax.runtime.progress import logger

LANES = 128  # of a TPU
CUDNN_CAPABILITY = (9, 0)  # or later, of packed sequences
HOPPER_CAPABILITY = (9, 0)
SMALL_TPUS = ('TPU v2', 'TPU v3', 'TPU v4', 'TPU v4 lite')


@functools.lru_cache(maxsize=16)  # Each choice is said once.
def resolve(
  config: ModelConfig, mesh: Mesh, batch_size: int, sequence_length: int
) -> ModelConfig:
  """The config with 'auto' replaced, for a forward pass on a mesh.

  Args:
    config: The model, in the dtype of the computation.
    mesh: Its devices decide.
    batch_size: Sequences of the global batch.
    sequence_length: Tokens of a sequence.

  Raises:
    UserError: what the config names does not run there; the reason is given.
  """
  chosen = {
    'attention': _choose(
      'attention',
      config.attention,
      {'tpu': 'splash', 'gpu': 'cudnn'},
      mesh,
      {
        'splash': lambda: _no_splash(config, mesh, sequence_length),
        'cudnn': lambda: _no_cudnn(config, mesh),
      },
    ),
    'loss_kernel': _choose(
      'loss_kernel',
      config.loss_kernel,
      {'tpu': 'tpu', 'gpu': 'hopper'},
      mesh,
      {
        'tpu': lambda: _no_tpu(config, mesh),
        'hopper': lambda: _no_hopper(
          config, mesh, batch_size * sequence_length
        ),
      },
    ),
  }
  return dataclasses.replace(config, **chosen)


@functools.lru_cache(maxsize=16)
def resolve_training(
  config: ModelConfig, mesh: Mesh, sequence_length: int
) -> ModelConfig:
  """The config with 'auto' replaced, for a training step on a mesh.

  The loss is always XLA's: its kernels have no backward pass. cuDNN's attention
  has one, which JAX gives; it has to be asked for by name.

  Args:
    config: The model.
    mesh: Its devices decide.
    sequence_length: Tokens of a sequence.

  Raises:
    UserError: the attention that the config names does not run there; the
      reason is given.
  """

  def no_cudnn() -> str:
    obstacle = _no_cudnn(config, mesh)
    if not obstacle and config.attention == 'auto':
      return (
        'its gradient has not been tested on a GPU; ask for it with '
        "model.attention='cudnn'"
      )
    return obstacle

  attention = _choose(
    'attention',
    config.attention,
    {'tpu': 'splash', 'gpu': 'cudnn'},
    mesh,
    {
      'splash': lambda: _no_splash(config, mesh, sequence_length),
      'cudnn': no_cudnn,
    },
  )
  return dataclasses.replace(config, attention=attention, loss_kernel='xla')


def _choose(
  name: str,
  wanted: str,
  best: dict[str, str],
  mesh: Mesh,
  obstacles: dict[str, Callable[[], str]],
) -> str:
  """What is wanted, or for 'auto' the best of the platform that runs."""
  platform = mesh.devices.flat[0].platform
  choice = best.get(platform, 'xla') if wanted == 'auto' else wanted
  if choice == 'xla':
    return choice
  home = next(where for where, what in best.items() if what == choice)
  if platform == home:
    obstacle = obstacles[choice]()
  else:
    obstacle = f'it runs on a {home.upper()}, the mesh is of {platform} devices'
  if not obstacle:
    logger.info('model.%s: %s', name, choice)
    return choice
  if wanted != 'auto':
    raise UserError(
      f"model.{name}='{choice}' does not run here: {obstacle}. Use 'auto', "
      "which takes the fastest that runs, or 'xla', which runs anywhere."
    )
  logger.warning(
    "model.%s: 'xla', which is slower than '%s': %s", name, choice, obstacle
  )
  return 'xla'


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
  """Of an NVIDIA GPU, such as (9, 0); () for any other device.

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


def _no_cudnn(config: ModelConfig, mesh: Mesh) -> str:
  """Why cuDNN's attention cannot run; '' if it can."""
  device = mesh.devices.flat[0]
  # JAX refuses packed sequences on an older one, but only as it compiles.
  if compute_capability(device) < CUDNN_CAPABILITY:
    return (
      'its packed sequences need an NVIDIA GPU of compute capability 9.0 or '
      f'later, {_described(device)}'
    )
  if config.dtype != 'bfloat16':
    return f'it computes in bfloat16, the dtype here is {config.dtype}'
  if config.head_dim % 8 or config.head_dim > 128:
    return f'head_dim={config.head_dim} is no multiple of 8 up to 128'
  num_shards = mesh.num_shards('length')
  return f'the mesh cuts sequences in {num_shards}, it takes whole ones' * (
    num_shards > 1
  )


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


def _no_hopper(config: ModelConfig, mesh: Mesh, tokens: int) -> str:
  """Why the kernels of `hopper` cannot run; '' if they can."""
  device = mesh.devices.flat[0]
  # Their instructions are of this generation alone: no earlier, no later one.
  if compute_capability(device) != HOPPER_CAPABILITY:
    return (
      f'they need an NVIDIA GPU of compute capability 9.0, {_described(device)}'
    )
  if config.dtype != 'bfloat16':
    return f'they compute in bfloat16, the dtype here is {config.dtype}'
  if config.logit_softcap:
    return f'they cannot cap logits, model.logit_softcap={config.logit_softcap}'
  # Imports what only a GPU needs.
  from infoprune_jax.model.kernels import hopper

  num_shards = mesh.num_shards('batch') * mesh.num_shards('length')
  columns = config.mlp_dim // mesh.num_shards('mlp')
  if not hopper.supports(tokens // num_shards, config.embed_dim, columns):
    return (
      f'{tokens // num_shards} tokens per device, embed_dim={config.embed_dim} and '
      f'mlp_dim={columns} a device must be multiples of 256, 64 and 64'
    )
  return ''
