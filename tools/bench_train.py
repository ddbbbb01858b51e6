r"""The train step beside Hugging Face transformers: same shape, same tokens.

Command: python tools/bench_train.py --model=124m --peer_python=venv/bin/python

Both sides train a Llama of random weights with clipping, AdamW (PyTorch's
fused) and a schedule. Parameters and AdamW's moments are float32; the
computation is in `--dtype` (PyTorch by autocast). Transformers uses SDPA, eager
and compiled together with its loss. Sequences are dense, and are in device
memory. Only our side runs if `--peer_python` has no PyTorch.

With --curve, both sides train on packed sequences of several documents with
padding, from the same weights on the same batches. The tool then prints the
difference of their losses.
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import bench_llama
import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
_MODEL = flags.DEFINE_enum(
  'model', '8m', ['tiny', '8m', '124m', '1b3'], 'Size.'
)
_VOCAB = flags.DEFINE_integer('vocab_size', 8192, 'Token ids.')
_ROWS = flags.DEFINE_integer('sequences', 16, 'Sequences of a batch.')
_LENGTH = flags.DEFINE_integer('sequence_length', 256, 'Tokens of a sequence.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['bfloat16', 'float32'], 'Type of the computation.'
)
_TIMED = flags.DEFINE_integer('timed_steps', 2, 'Steps timed together.')
_CURVE = flags.DEFINE_integer('curve', 0, 'Steps of a curve to compare.')
_CHOICES = flags.DEFINE_string(
  'choices', '{}', 'JSON of fields of our ModelConfig: remat, scan_unroll, ...'
)
_PARTS = flags.DEFINE_integer(
  'shards', 1, 'Micro-batches of a batch, on our side.'
)
_CONTENDERS = flags.DEFINE_list(
  'contenders', ['ours', 'eager', 'compiled'], 'Ours runs anyway.'
)
_PEER = flags.DEFINE_string(
  'peer_python', sys.executable, 'A Python with torch and transformers.'
)


def packed_sequences(
  steps: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """Sequences of one document (`--curve`: of several, and padding at the end).

  Each token but some follows from the one before: there is something to learn.
  """
  shape = (steps, _ROWS.value, _LENGTH.value)
  tokens = rng.integers(2, _VOCAB.value, shape)
  for slot in range(1, shape[2]):
    follows = rng.random(shape[:2]) < 0.7
    next_one = (tokens[..., slot - 1] * 7 + 3) % 97 + 2
    tokens[..., slot] = np.where(follows, next_one, tokens[..., slot])
  places = np.broadcast_to(np.arange(shape[2]), shape)
  begins = places == 0
  padding = np.zeros(shape, bool)
  if _CURVE.value:
    begins = begins | (rng.random(shape) < 6 / shape[2])
    padding = (
      places >= rng.integers(shape[2] // 2, shape[2], shape[:2])[..., None]
    )
  starts = np.maximum.accumulate(np.where(begins, places, 0), axis=2)
  before = np.concatenate([tokens[..., :1], tokens[..., :-1]], axis=2)
  # A document's first input is BOS, 1.
  arrays = {
    'inputs': np.where(begins, 1, before),
    'targets': tokens,
    'positions': places - starts,
    'segments': np.cumsum(begins, axis=2),
  }
  return {
    name: np.where(padding, 0, values).astype(np.int32)
    for name, values in arrays.items()
  }


def run(name: str, python: str, folder: str) -> dict[str, Any] | None:
  """Runs a contender in a process of its own; None if that fails."""
  settings = {
    'folder': folder,
    'model': _MODEL.value,
    'vocab_size': _VOCAB.value,
    'sequences': _ROWS.value,
    'sequence_length': _LENGTH.value,
    'dtype': _DTYPE.value,
    'timed_steps': _TIMED.value,
    'steps': max(_CURVE.value, 50),
    'curve_steps': _CURVE.value,
    'choices': json.loads(_CHOICES.value),
    'shards': _PARTS.value,
  }
  return bench_llama.run_contender(
    name,
    [
      *(python, str(ROOT / 'tools/bench_train_contenders.py')),
      *(name, json.dumps(settings)),
    ],
  )


def report(name: str, result: dict[str, Any], own: dict[str, Any]) -> None:
  """Prints the line of a contender."""
  rate = result['tokens_per_second']
  flops = rate * own['flops_per_token']
  line = (
    f'{name:10}{rate / 1e3:10.2f}k tokens/s{flops / 1e12:9.3f} TFLOP/s'
    f'{flops / own["ceiling"]:7.1%} of ceiling{result["memory"] / 1e9:8.2f} GB'
  )
  if result is not own:
    line += f'  ours is {own["tokens_per_second"] / rate:.2f}x as fast'
  print(line, flush=True)
  if result is not own and _CURVE.value:
    apart = np.abs(np.subtract(result['losses'], own['losses']))
    print(
      f'{name}: losses of {_CURVE.value} steps, {own["losses"][0]:.4f} to '
      f'{own["losses"][-1]:.4f}, at most {apart.max():.1e} from ours (step '
      f'{apart.argmax() + 1})',
      flush=True,
    )


def has_peers(python: str) -> bool:
  """Whether a Python has what the peers need."""
  if python == sys.executable:
    modules = ('torch', 'transformers')
    return all(importlib.util.find_spec(name) for name in modules)
  done = subprocess.run(
    [python, '-c', 'import torch, transformers'], capture_output=True
  )
  return not done.returncode


def main(argv: list[str]) -> None:
  """Runs the contenders one after another."""
  del argv
  names = list(_CONTENDERS.value)
  if len(names) > 1 and not has_peers(_PEER.value):
    print(f'{_PEER.value} has no torch or transformers: ours alone')
    names = ['ours']
  with tempfile.TemporaryDirectory() as folder:
    made = packed_sequences(max(1, _CURVE.value), np.random.default_rng(0))
    for name, values in made.items():
      np.save(f'{folder}/{name}.npy', values)
    own = run('ours', sys.executable, folder)
    if own is None:
      sys.exit(1)
    print(
      f'{own["device"]}: {_MODEL.value}, {own["num_params"] / 1e6:.1f}M '
      f'parameters in float32, computed in {_DTYPE.value}, batches of '
      f'{_ROWS.value} x {_LENGTH.value} tokens (ours in {_PARTS.value} micro-batches); '
      'a matrix product reaches '
      f'{own["ceiling"] / 1e12:.3f} TFLOP/s',
      flush=True,
    )
    report('ours', own, own)
    for name in names:
      result = run(name, _PEER.value, folder) if name != 'ours' else None
      if result:
        report(name, result, own)


if __name__ == '__main__':
  app.run(main)
