"""The contenders of `bench_train.py`: `bench_train_contenders.py NAME JSON`.

Each prints its measurements. Batches and the first weights are `.npy` files of
a folder, so that a peer needs nothing of ours: only NumPy, PyTorch and
transformers.
"""

import functools
import json
import math
import resource
import sys
from collections.abc import Callable
from typing import Any

import bench_llama
import numpy as np

REPEATS = 4
# Of both sides' AdamW, clipping and schedule, as `training` names them.
RECIPE = dict(
  learning_rate=1e-3,
  warmup_steps=10,
  final_learning_rate_ratio=0.1,
  weight_decay=0.1,
  beta1=0.9,
  beta2=0.95,
  max_grad_norm=1.0,
)
ARRAYS = {
  'inputs': 'decoder_input_tokens',
  'targets': 'decoder_target_tokens',
  'positions': 'decoder_positions',
  'segments': 'decoder_segment_ids',
}


def batches(settings: dict[str, Any]) -> dict[str, np.ndarray]:
  """[steps, sequences, T] arrays by the names of `ARRAYS`."""
  folder = settings['folder']
  return {name: np.load(f'{folder}/{name}.npy') for name in ARRAYS}


def peak_of_process() -> int:
  """Bytes that this process held at most, of a CPU's memory."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def result(
  settings: dict[str, Any], seconds: float, memory: int, losses: list[float]
) -> dict[str, Any]:
  """The result that every contender returns."""
  return {
    'tokens_per_second': settings['sequences']
    * settings['sequence_length']
    / seconds,
    'memory': memory,
    'losses': losses,
  }


def timed(
  settings: dict[str, Any], step: Callable[[], Any], wait: Any
) -> float:
  """Seconds of a step, the best of some runs of as many as are timed."""

  def run() -> None:
    for _ in range(settings['timed_steps']):
      metrics = step()
    wait(metrics)

  return bench_llama.best(run, REPEATS) / settings['timed_steps']


def configs(settings: dict[str, Any]) -> tuple[Any, Any]:
  """Our `ModelConfig` and `TrainingConfig`."""
  from infoprune_jax.config.model import ModelConfig
  from infoprune_jax.config.training import TrainingConfig

  fields = bench_llama.model_fields(settings['model'], settings['dtype'])
  # As the presets do.
  fields |= dict(remat='auto', scan_unroll=0, loss_chunk_tokens=0)
  fields |= settings['choices']
  training = TrainingConfig(
    num_steps=settings['steps'],
    batch_size=settings['sequences'],
    sequence_length=settings['sequence_length'],
    gradient_accumulation_steps=settings['shards'],
    **RECIPE,
  )
  return ModelConfig(**fields), training


def ours(settings: dict[str, Any]) -> dict[str, Any]:
  """Our train step; it writes the weights that the others start from."""
  import jax

  from infoprune_jax.model import flops
  from infoprune_jax.runtime import progress
  from infoprune_jax.score import ceiling
  from infoprune_jax.train import state as state_lib

  progress.log_to_stderr()
  model, training = configs(settings)
  mesh = bench_llama.one_device_mesh()
  arrays = batches(settings)
  program = state_lib.compile_program(
    model,
    training,
    settings['vocab_size'],
    mesh,
    arrays['segments'].max(axis=-1).ravel(),
  )
  state = program.init(0)
  bench_llama.write_weights(settings['folder'], state['params'])

  def batch(number: int) -> Any:
    sequences = {key: arrays[name][number] for name, key in ARRAYS.items()}
    weights = (sequences['decoder_segment_ids'] > 0).astype(np.float32)
    return {**sequences, 'decoder_loss_weights': weights}

  losses = []
  for number in range(settings['curve_steps']):
    taken = program.step_for(batch(number))
    state, metrics = taken(state, program.put(batch(number)))
    losses.append(float(metrics['loss']))
  timed_step, on_device = program.step_for(batch(0)), program.put(batch(0))
  ceilings = [ceiling.measured(settings['dtype'])]

  def step() -> Any:
    nonlocal state
    state, metrics = timed_step(state, on_device)
    return metrics

  seconds = timed(settings, step, jax.block_until_ready)
  ceilings.append(ceiling.measured(settings['dtype']))
  stats = jax.devices()[0].memory_stats() or {}
  return {
    **result(
      settings,
      seconds,
      stats.get('peak_bytes_in_use', peak_of_process()),
      losses,
    ),
    'device': jax.devices()[0].device_kind,
    'ceiling': max(ceilings),
    'flops_per_token': flops.training_flops_per_token(
      model, settings['vocab_size'], settings['sequence_length']
    ),
    'num_params': flops.num_params(model, settings['vocab_size']),
  }


def schedule(step: int, steps: int) -> float:
  """A fraction of the peak: a line up, then half a cosine down."""
  warm, end = RECIPE['warmup_steps'], RECIPE['final_learning_rate_ratio']
  if step < warm:
    return step / warm
  fraction = (step - warm) / max(1, steps - warm)
  return end + (1 - end) * (1 + math.cos(math.pi * min(1.0, fraction))) / 2


def allowed(segments: np.ndarray) -> np.ndarray:
  """[B, 1, T, T] bool: the own segment, up to the position itself."""
  same = segments[:, :, None] == segments[:, None, :]
  return np.tril(same)[:, None]


def _adamw(model: Any, steps: int) -> tuple[Any, Any]:
  """Fused AdamW of PyTorch, and its schedule of learning rates."""
  import torch

  matrices = [p for p in model.parameters() if p.ndim > 1]
  norms = [p for p in model.parameters() if p.ndim < 2]
  optimizer = torch.optim.AdamW(
    [
      {'params': matrices, 'weight_decay': RECIPE['weight_decay']},
      {'params': norms, 'weight_decay': 0.0},
    ],
    lr=RECIPE['learning_rate'],
    betas=(RECIPE['beta1'], RECIPE['beta2']),
    eps=1e-8,
    fused=True,
  )
  return optimizer, torch.optim.lr_scheduler.LambdaLR(
    optimizer, functools.partial(schedule, steps=steps)
  )


def _torch_batch(
  arrays: dict[str, np.ndarray], number: int, device: str
) -> tuple[dict[str, Any], Any]:
  """The tensors of a batch, and its mask; None for PyTorch's causal kernel."""
  import torch

  sequences = {
    name: torch.from_numpy(values[number].astype(np.int64)).to(device)
    for name, values in arrays.items()
  }
  if int(sequences['segments'].min()) == int(sequences['segments'].max()):
    return sequences, None
  mask = allowed(arrays['segments'][number])
  return sequences, torch.from_numpy(mask).to(device)


def _loss(model: Any, device: str, half: bool) -> Callable[[Any, Any], Any]:
  """The mean NLL of a batch, in PyTorch; computed in bfloat16 if `half`."""
  import torch

  def loss_of(sequences: dict[str, Any], mask: Any) -> Any:
    with torch.autocast(device, torch.bfloat16, enabled=half):
      logits = model(
        input_ids=sequences['inputs'],
        position_ids=sequences['positions'],
        attention_mask=mask,
        use_cache=False,
      ).logits
    nll = torch.nn.functional.cross_entropy(
      logits.float().flatten(0, 1),
      sequences['targets'].flatten(),
      reduction='none',
    )
    weights = (sequences['segments'] > 0).flatten()
    return (nll * weights).sum() / weights.sum()

  return loss_of


def transformers_(
  settings: dict[str, Any],
  compiled: bool,
  arrays: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
  """Transformers' Llama in PyTorch with fused AdamW; float32 parameters.

  Args:
    settings: The settings that both sides share.
    compiled: Whether model and loss are compiled together.
    arrays: As `batches` returns; None for those of the folder.
  """
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  length = settings['sequence_length']
  model = bench_llama.transformers_llama(
    settings['folder'],
    settings['model'],
    settings['vocab_size'],
    length,
    'float32',
    device,
  ).train()
  optimizer, rate = _adamw(model, settings['steps'])
  loss_of = _loss(model, device, settings['dtype'] == 'bfloat16')
  program = torch.compile(loss_of) if compiled else loss_of

  def step(sequences: dict[str, Any], mask: Any) -> Any:
    loss = program(sequences, mask)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE['max_grad_norm'])
    optimizer.step()
    rate.step()
    return loss

  arrays = arrays or batches(settings)
  losses = [
    step(*_torch_batch(arrays, number, device)).item()
    for number in range(settings['curve_steps'])
  ]
  dense = _torch_batch(arrays, 0, device)
  seconds = timed(settings, lambda: step(*dense), lambda loss: loss.item())
  peak = (
    torch.cuda.max_memory_allocated() if device == 'cuda' else peak_of_process()
  )
  return result(settings, seconds, peak, losses)


CONTENDERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
  'ours': ours,
  'eager': functools.partial(transformers_, compiled=False),
  'compiled': functools.partial(transformers_, compiled=True),
}


if __name__ == '__main__':
  measured = CONTENDERS[sys.argv[1]](json.loads(sys.argv[2]))
  print('RESULT' + json.dumps(measured), flush=True)
