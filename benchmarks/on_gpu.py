r"""All measurements of a GPU in one call, beside the goals that we have for it.

  python benchmarks/on_gpu.py --results=on_gpu.jsonl [--seconds=540] \
      [--part_seconds=100] [--only='train 124m'] [--tiny]

Needs one GPU, JAX, flax, optax, numba and pyarrow; transformers and PyTorch for
their parts. It needs no network and no corpus: a checkout is enough. It measures
the rate of matrix products; then how far the attention of each kernel is from
XLA's, and what a layer of it takes; then scoring and training of 17M, 124M and
1.3B parameters, each with dense sequences and with packed documents of median
length 83 and 800 tokens, by attention, beside transformers compiled by PyTorch.
Figures are tokens per second, and fractions of the rate of matrix products.
Packed documents are scored from the host to a sum for each.

Each part is a process with a time limit of its own. A part that fails or takes
too long costs its own figures only. The most important parts come first; those
that no time is left for are skipped. Results are appended to the file as they
come. `--tiny` measures nothing: it runs the parts on a CPU, in three minutes.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = ('dense', '83', '800')  # tokens, the median length
LEAST_SECONDS = 15
MODELS = {
  '17m': dict(
    vocab_size=16384, sequence_length=512, sequences=128, score_batches=64
  ),
  '124m': dict(
    vocab_size=50257, sequence_length=1024, sequences=64, score_batches=64
  ),
  '1b3': dict(
    vocab_size=50257, sequence_length=2048, sequences=8, score_batches=16
  ),
}
SHARED = dict(
  dtype='bfloat16',
  folder='',  # Weights are random on both sides.
  documents=DOCUMENTS,
  batches=8,  # of different sequences, to train on
  shards=1,
  steps=10_000,
  timed_steps=4,
  attention='auto',
)
# Upper bounds, as a user sets them once for all models.
CHOICES = dict(scan_unroll=24, loss_chunk_tokens=16_384)
TINY_MODEL = dict(
  vocab_size=256, sequence_length=64, sequences=4, score_batches=2
)
TINY = dict(
  **dict(dtype='float32', batches=2, timed_steps=1),
  documents=('dense', '12'),
)
# Parts by importance: what is measured, the model, and our attention.
PARTS = (
  ('ceiling', '', ''),
  ('check', '', ''),
  ('train', '124m', 'auto'),
  ('train', '124m', 'pallas'),
  ('score', '124m', 'auto'),
  ('attention', '124m', ''),
  ('train', '17m', 'auto'),
  ('train', '17m', 'pallas'),
  ('train_transformers', '124m', ''),
  ('score', '17m', 'auto'),
  ('train', '1b3', 'auto'),
  ('score', '1b3', 'auto'),
  ('score_transformers', '124m', ''),
  ('train', '1b3', 'pallas'),
  ('score', '124m', 'pallas'),
  ('attention', '17m', ''),
  ('attention', '1b3', ''),
  ('train', '17m', 'xla'),
  ('train', '124m', 'xla'),
  ('train_transformers', '1b3', ''),
  ('score_transformers', '1b3', ''),
)


@dataclasses.dataclass(frozen=True)
class Results:
  """What the parts have recorded."""

  lines: list[dict[str, Any]]

  def of(self, part: str, kind: str = 'dense') -> dict[str, Any]:
    """The line of a part that has a rate; {} if there is none."""
    for line in self.lines:
      same = (line['part'], line.get('kind')) == (part, kind)
      if same and 'tokens_per_second' in line:
        return line
    return {}

  def rate(self, part: str, kind: str = 'dense') -> float:
    """Tokens per second; NaN if unmeasured."""
    return self.of(part, kind).get('tokens_per_second', float('nan'))

  @property
  def ceiling(self) -> float:
    """FLOP/s of matrix products; NaN if unmeasured."""
    for line in self.lines:
      if 'flops_per_second' in line:
        return line['flops_per_second']
    return float('nan')

  def fraction(self, part: str, kind: str = 'dense') -> float:
    """FLOP/s by our formula, as a fraction of the rate of matrix products."""
    cost = self.of(part, kind).get('flops_per_token', float('nan'))
    return self.rate(part, kind) * cost / self.ceiling

  def packed(self, part: str, kind: str) -> float:
    """The rate of packed sequences, as a fraction of that of dense ones."""
    return self.rate(part, kind) / self.rate(part)


Goal = tuple[str, float, Callable[[Results], float]]
GOALS: tuple[Goal, ...] = (
  ('124m scored, dense, tokens/s', 2.0e6, lambda r: r.rate('score 124m auto')),
  (
    '124m scored, documents of 800, tokens/s',
    *(1.9e6, lambda r: r.rate('score 124m auto', '800')),
  ),
  ('1b3 scored, of ceiling', 0.80, lambda r: r.fraction('score 1b3 auto')),
  (
    '124m trained, over transformers compiled',
    1.25,
    lambda r: r.rate('train 124m auto') / r.rate('train_transformers 124m'),
  ),
  ('124m trained, of ceiling', 0.55, lambda r: r.fraction('train 124m auto')),
  ('1b3 trained, of ceiling', 0.70, lambda r: r.fraction('train 1b3 auto')),
  (
    '17m trained, documents of 83, tokens/s',
    *(750e3, lambda r: r.rate('train 17m auto', '83')),
  ),
  *(
    (
      f'{job} {model}, documents of {kind}, of dense',
      0.85,
      lambda r, p=f'{job} {model} auto', k=kind: r.packed(p, k),
    )
    for job in ('train', 'score')
    for model in MODELS
    for kind in DOCUMENTS[1:]
  ),
)


def settings(part: tuple[str, str, str], tiny: bool) -> dict[str, Any]:
  """The settings of a part, see `gpu_parts.py`."""
  what, model, attention = part
  given: dict[str, Any] = {
    **SHARED,
    **MODELS.get(model, MODELS['124m']),
    'model': model,
    'attention': attention or 'auto',
    'choices': {**CHOICES, 'attention': attention or 'auto'},
  }
  if what == 'check':
    given['attention'] = ('cudnn', 'pallas')
  if tiny:
    small = {'attention': attention or 'auto', 'loss_chunk_tokens': 128}
    given |= {**TINY_MODEL, **TINY, 'model': 'tiny', 'choices': small}
  return given


def run_part(
  part: tuple[str, str, str], results: str, tiny: bool, seconds: float
) -> None:
  """Runs a part in a process of its own, and records how it failed."""
  if tiny and part[1]:  # Not a figure of the model that a goal names.
    part = (part[0], 'tiny', part[2])
  name = ' '.join(filter(None, part))
  given = {**settings(part, tiny), 'part': name, 'results': results}
  paths = (ROOT, ROOT / 'tools', ROOT / 'benchmarks')
  command = [sys.executable, str(ROOT / 'benchmarks/gpu_parts.py')]
  started = time.monotonic()
  failed = ''
  with tempfile.TemporaryFile('w+') as errors:
    process = subprocess.Popen(
      [*command, part[0], json.dumps(given)],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))},
      stderr=errors,
      start_new_session=True,  # PyTorch compiles in processes of its own.
    )
    try:
      if process.wait(timeout=seconds):
        errors.seek(0)
        failed = errors.read().strip().split('\n')[-1][:300]
    except subprocess.TimeoutExpired:
      failed = f'stopped after {seconds:.0f} s'
    finally:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  taken = round(time.monotonic() - started, 1)
  line = {'part': name, 'seconds': taken}
  with open(results, 'a', encoding='utf-8') as file:
    file.write(json.dumps(line | ({'failed': failed} if failed else {})) + '\n')
  print(f'{name}: {taken} s{", failed: " * bool(failed)}{failed}', flush=True)


def read(path: str) -> Results:
  """The results of a file."""
  text = pathlib.Path(path).read_text(encoding='utf-8')
  return Results([json.loads(line) for line in text.splitlines()])


def report(results: Results) -> None:
  """Prints the tables."""
  first = next((x for x in results.lines if 'device' in x), {})
  print(
    f'\n{first.get("device", "no device")}, {first.get("versions", "")}: a matrix '
    f'product reaches {results.ceiling / 1e12:.1f} TFLOP/s\n'
  )
  for line in results.lines:
    if 'apart' in line:
      print(
        f'{line["kind"]}, {line["kv_heads"]} key heads for 4 queries: at most '
        f'{line["apart"]:.1%} from XLA, relative to the largest number'
      )
  for line in results.lines:
    if 'tokens_per_second' in line:
      fraction = results.fraction(line['part'], line['kind'])
      share = '' if fraction != fraction else f'{fraction:8.1%} of ceiling'
      if 'waited_for_host' in line:
        share += f', waited for the host {line["waited_for_host"]:.1%}'
      print(
        f'{line["part"]:26}{line["kind"]:>6}'
        f'{line["tokens_per_second"] / 1e3:10.1f}k tokens/s{share}'
      )
    elif 'layer_seconds' in line:
      print(
        f'{line["part"]:26}{line["kind"]}: {1e3 * line["layer_seconds"]:.2f} ms '
        'a layer, forward and backward'
      )
    elif 'failed' in line:
      print(f'{line["part"]:26}{line.get("kind", ""):>6}  {line["failed"]!r}')
  print(f'\n{"goal":52}{"least":>10}{"measured":>12}')
  for text, least, value_of in GOALS:
    value = value_of(results)
    shown = 'unmeasured' if value != value else f'{value:,.2f}'
    met = '' if value != value else ('  met' if value >= least else '  missed')
    print(f'{text:52}{least:10,.2f}{shown:>12}{met}')


def main() -> None:
  """Runs the parts that there is time for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--results', required=True, help='a file to write')
  parser.add_argument('--seconds', type=float, default=540, help='for all')
  parser.add_argument('--part_seconds', type=float, default=100, help='for one')
  parser.add_argument(
    '--only', default='', help='parts whose name begins so, by comma'
  )
  parser.add_argument('--tiny', action='store_true', help='try it on a CPU')
  flags = parser.parse_args()
  # As an error, so that the part that runs is ended, too.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
  end = time.monotonic() + flags.seconds
  only = tuple(flags.only.split(','))
  results = str(pathlib.Path(flags.results).resolve())
  pathlib.Path(results).write_text('')
  for part in PARTS:
    name = ' '.join(filter(None, part))
    chosen = part[0] == 'ceiling' or name.startswith(only)
    # One model of them all is enough to try the parts.
    if not chosen or (flags.tiny and part[1] not in ('', '124m')):
      continue
    left = end - time.monotonic()
    if left < LEAST_SECONDS:
      print(f'{name}: skipped, {left:.0f} s are left')
      continue
    run_part(part, results, flags.tiny, min(left, flags.part_seconds))
  report(read(results))


if __name__ == '__main__':
  main()
