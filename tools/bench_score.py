r"""Scoring beside Hugging Face transformers: same weights, same documents.

Command: python tools/bench_score.py --workdir=runs/mine --model=124m

Needs a token store (`--job=tokenize`) and nothing that made it. The model is a
Llama of random weights, which both sides load; transformers runs it with SDPA,
eager and compiled, its batches sorted by length and padded to their longest and
its loss from whole logits, as lm-evaluation-harness does (or, 'fused', compiled
with the loss); none is run where PyTorch is not installed. First dense
sequences of random tokens, on the device alone; then documents of the store
that fit a sequence, from token ids on the host to a sum for each document.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import tempfile
from typing import Any

import bench_llama
import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
_WORKDIR = flags.DEFINE_string('workdir', None, 'A workdir with a token store.')
_MODEL = flags.DEFINE_enum(
  'model', '124m', ['tiny', '8m', '124m', '1b3'], 'Size.'
)
_VOCAB = flags.DEFINE_integer('vocab_size', 50257, 'No less than the store.')
_ROWS = flags.DEFINE_integer(
  'sequences', 64, 'Sequences of a batch, of each contender.'
)
_LENGTH = flags.DEFINE_integer('sequence_length', 1024, 'Tokens of a sequence.')
_TOKENS = flags.DEFINE_integer('tokens', 4_000_000, 'Of documents, a maximum.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['bfloat16', 'float32'], 'Type of the computation.'
)
_CONTENDERS = flags.DEFINE_list(
  'contenders', ['ours', 'eager', 'compiled', 'fused'], 'Ours runs anyway.'
)
# One contender alone, in a process of its own: the tool starts itself.
_ONE = flags.DEFINE_string('one', '', 'Used by the tool itself.')
_FOLDER = flags.DEFINE_string('folder', '', 'Used by the tool itself.')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings that all contenders share."""

  folder: str  # weights, as `bench_score_contenders` names them; results
  workdir: str
  model: str
  vocab_size: int
  sequences: int
  sequence_length: int
  tokens: int
  dtype: str
  attention: str = 'auto'  # of ours


def settings(folder: str) -> Settings:
  """The settings of the flags."""
  return Settings(
    folder=folder,
    workdir=_WORKDIR.value,
    model=_MODEL.value,
    vocab_size=_VOCAB.value,
    sequences=_ROWS.value,
    sequence_length=_LENGTH.value,
    tokens=_TOKENS.value,
    dtype=_DTYPE.value,
  )


def run(name: str, folder: str) -> dict[str, Any] | None:
  """Runs a contender in a process of its own; None if that fails."""
  arguments = [flag for flag in sys.argv[1:] if flag.startswith('--')]
  return bench_llama.run_contender(
    name,
    [
      *(sys.executable, __file__, *arguments),
      *(f'--one={name}', f'--folder={folder}'),
    ],
  )


def report(name: str, measured: dict[str, Any], own: dict[str, Any]) -> None:
  """Prints a line for dense sequences and one for documents."""
  for kind in ('dense', 'mixed'):
    peer, base = measured[kind], own[kind]
    rate = peer['tokens'] / peer['seconds']
    line = (
      f'{name:10}{kind:7}{rate / 1e3:10.1f}k tokens/s'
      f'{rate * base["tokens_per_second_cost"] / 1e12:8.2f} TFLOP/s'
      f'{rate * base["tokens_per_second_cost"] / own["ceiling"]:7.1%} of ceiling'
    )
    if peer['memory'] is not None:
      line += f'{peer["memory"] / 1e9:8.2f} GB beyond parameters'
    if measured is not own:
      ratio = base['tokens'] / base['seconds'] / rate
      line += f'  ours is {ratio:.2f}x as fast'
    print(line, flush=True)


def compare(folder: str, name: str) -> None:
  """Prints the difference of two contenders' sums of documents."""
  own = np.load(f'{folder}/ours.npy')
  other = np.load(f'{folder}/{name}.npy')
  relative = np.abs(other / own - 1)
  print(
    f'{name}: NLL of all documents {other.sum() / own.sum() - 1:+.1e} of ours, '
    f'of one at most {relative.max():.1e}',
    flush=True,
  )


def main(argv: list[str]) -> None:
  """Runs the contenders one after another."""
  del argv
  sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]
  if _ONE.value:
    import bench_score_contenders

    work = bench_score_contenders.CONTENDERS[_ONE.value]
    print('RESULT' + json.dumps(work(settings(_FOLDER.value))), flush=True)
    return
  names = list(_CONTENDERS.value)
  for module in ('torch', 'transformers'):
    if importlib.util.find_spec(module) is None and len(names) > 1:
      print(f'{module} is not installed: ours alone')
      names = ['ours']
  with tempfile.TemporaryDirectory() as folder:
    own = run('ours', folder)
    if own is None:
      sys.exit(1)
    mixed = own['mixed']
    print(
      f'{own["device"]}: {_MODEL.value} {_DTYPE.value}, sequences of {_LENGTH.value},'
      f' a matrix product reaches {own["ceiling"] / 1e12:.2f} TFLOP/s; '
      f'{mixed["documents"]} documents of {mixed["tokens"]} tokens, sequences '
      f'{mixed["fill"]:.2%} full',
      flush=True,
    )
    report('ours', own, own)
    for name in names:
      result = run(name, folder) if name != 'ours' else None
      if result:
        report(name, result, own)
        compare(folder, name)


if __name__ == '__main__':
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
