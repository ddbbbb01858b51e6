"""Who `bench_train.py` compares: `python bench_train_contenders.py NAME JSON`.

Each prints what it measured. Batches and the first weights are `.npy` files of
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
  """What every contender returns."""
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


def _configs(settings: dict[str, Any]) -> tuple[Any, Any]:
  """Our `ModelConfig` and `TrainingConfig`."""
  from configs import base
  from infoprune_jax.config import (
    model as model_config,
    training as training_config,
    validation,
  )

  fields = bench_llama.model_fields(settings['model'], settings['dtype'])
  # As the presets do: a loop over layers is slow, and compiles fast.
  fields['scan_unroll'] = min(12, fields['num_layers'])
  fields |= settings['choices']
  training = base.training()
  training.update(
    num_steps=settings['steps'],
    batch_size=settings['sequences'],
    sequence_length=settings['sequence_length'],
    gradient_accumulation_steps=settings['shards'],
    **RECIPE,
  )
  return model_config.ModelConfig(**fields), validation.build(
    training_config.TrainingConfig, training.to_dict(), 'training'
  )


def ours(settings: dict[str, Any]) -> dict[str, Any]:
  """Our train step; it writes the weights that the others start from."""
  import jax

  from infoprune_jax.model import flops
  from infoprune_jax.runtime import progress
  from infoprune_jax.score import ceiling
  from infoprune_jax.train import state as state_lib

  progress.log_to_stderr()
  model, training = _configs(settings)
  mesh = bench_llama.one_device_mesh()
  arrays = batches(settings)
  program = state_lib.compile_program(
    model,
    training,
    settings['vocab_size'],
    mesh,
    int(arrays['segments'].max()),
  )
  state = program.init(0)
  bench_llama.write_weights(settings['folder'], state['params'])

  def batch(number: int) -> Any:
    sequences = {key: arrays[name][number] for name, key in ARRAYS.items()}
    weights = (sequences['decoder_segment_ids'] > 0).astype(np.float32)
    return program.put({**sequences, 'decoder_loss_weights': weights})

  losses = []
  for number in range(settings['curve_steps']):
    state, metrics = program.step(state, batch(number))
    losses.append(float(metrics['loss']))
  on_device = batch(0)
  ceilings = [ceiling.measured(settings['dtype'])]

  def step() -> Any:
    nonlocal state
    state, metrics = program.step(state, on_device)
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
  """Of the peak: a line up, then half a cosine down to the last step."""
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


def transformers_(settings: dict[str, Any], compiled: bool) -> dict[str, Any]:
  """Transformers' Llama in PyTorch with fused AdamW; float32 parameters."""
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
  half = settings['dtype'] == 'bfloat16'

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

  program = torch.compile(loss_of) if compiled else loss_of

  def step(sequences: dict[str, Any], mask: Any) -> Any:
    loss = program(sequences, mask)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE['max_grad_norm'])
    optimizer.step()
    rate.step()
    return loss

  arrays = batches(settings)

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
