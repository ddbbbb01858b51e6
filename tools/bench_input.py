r"""Speed of the input pipeline beside `datasets.map` and `seqio_cache_tasks`.

python tools/bench_input.py --files='data/*.jsonl.zst' \
    --tokenizer=tokenizer.json --bos_id=0 --eos_id=0 [--limit_mb=64]

All contenders read the same plain JSONL files, which are written first, and
encode them with the same tokenizer and number of processes. Imports are not
timed. A contender that is not installed is named; `pip install datasets
'apache-beam[tfrecord]'` and this package's extra `seqio` install all of them.
No contender adds EOS, and all encode the text of a special token as text, so
the counts of tokens agree.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import bench_contenders
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLOCK = os.sysconf('SC_CLK_TCK')

_FILES = flags.DEFINE_string('files', None, 'A glob: .jsonl, .jsonl.gz, .zst.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', None, 'A SentencePiece .model or a tokenizer.json.'
)
_TEXT = flags.DEFINE_string('text_column', 'text', 'The column of the text.')
_BOS = flags.DEFINE_integer('bos_id', -1, 'As config.vocabulary.bos_id.')
_EOS = flags.DEFINE_integer('eos_id', -1, 'As config.vocabulary.eos_id.')
_LIMIT = flags.DEFINE_integer('limit_mb', 64, 'MB of text, evenly by file.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Processes of each contender.')
_ROUNDS = flags.DEFINE_integer('rounds', 1, 'Runs to take medians of.')
_PEERS = flags.DEFINE_list(
  'peers', ['datasets', 'datasets_threads', 'seqio'], ''
)
# One contender alone, in a process of its own: the tool starts itself.
_ONE = flags.DEFINE_string('one', '', 'Used by the tool itself.')
_FOLDER = flags.DEFINE_string('folder', '', 'Used by the tool itself.')


def write_input(folder: str) -> int:
  """Writes only the texts, as plain JSONL; returns the bytes of text."""
  from configs import base
  from infoprune_jax.config import experiment as config_lib
  from infoprune_jax.corpus import sources

  edits = base.get_config()
  edits.corpus.sources.bench = base.jsonl(_FILES.value, text_column=_TEXT.value)
  config = config_lib.from_mapping(edits)
  units = sources.list_files(config.corpus.sources)
  fraction = _LIMIT.value * 1e6 / len(units)
  total = 0
  os.makedirs(f'{folder}/input')
  for number, file in enumerate(units):
    size = 0
    with open(f'{folder}/input/{number:05d}.jsonl', 'w') as output:
      for _, row in sources.read_records(file):
        if isinstance(row, sources.BadRecord):
          continue
        output.write(json.dumps({'text': row.text}, ensure_ascii=False) + '\n')
        size += len(row.text.encode())
        if size >= fraction:
          break
    total += size
  return total


@dataclasses.dataclass
class Result:
  """One contender's run."""

  seconds: float
  start: float  # seconds until its packages were imported
  cpu: float  # seconds of all its processes
  memory: int  # bytes at the peak, shared pages counted once
  facts: dict[str, Any]


def run(name: str, folder: str) -> Result | None:
  """Runs a contender in a process of its own; None if that fails."""
  arguments = [flag for flag in sys.argv[1:] if flag.startswith('--')]
  log = pathlib.Path(f'{folder}/{name}.log')
  begun = time.monotonic()
  with (
    log.open('w') as errors,
    subprocess.Popen(
      [
        *(sys.executable, __file__, *arguments),
        *(f'--one={name}', f'--folder={folder}'),
      ],
      env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "tools"}'},
      stdout=subprocess.PIPE,
      stderr=errors,
      start_new_session=True,
      text=True,
    ) as process,
  ):
    watch = _Watch(process)
    watch.start()
    output, _ = process.communicate()
  lines = [line for line in output.splitlines() if line.startswith('RESULT')]
  if process.returncode or not lines:
    print(f'{name} failed:\n{log.read_text()[-3000:]}')
    return None
  result = json.loads(lines[-1].removeprefix('RESULT'))
  seconds = result.pop('seconds') - result.pop('counting', 0.0)
  start = result.pop('begun') - begun
  return Result(seconds, start, sum(watch.cpu.values()), watch.memory, result)


class _Watch(threading.Thread):
  """Looks at all processes of a session, four times a second."""

  def __init__(self, process: subprocess.Popen):
    super().__init__(daemon=True)
    self._process = process
    self.memory = 0  # bytes at the peak
    self.cpu: dict[int, float] = {}  # seconds, by process

  def run(self) -> None:
    """Looks until the first process has ended."""
    while self._process.poll() is None:
      self.memory = max(self.memory, sum(self._look()))
      time.sleep(0.25)

  def _look(self) -> Iterator[int]:
    """The bytes of each process; notes its seconds."""
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
      pid = int(folder.name)
      try:
        if os.getsid(pid) != self._process.pid:
          continue
        fields = (folder / 'stat').read_text().rsplit(')', 1)[1].split()
        self.cpu[pid] = (int(fields[11]) + int(fields[12])) / CLOCK
        for line in (folder / 'smaps_rollup').read_text().splitlines():
          if line.startswith('Pss:'):
            yield 1024 * int(line.split()[1])
      except OSError:
        continue  # It has ended.


def main(argv: list[str]) -> None:
  del argv
  sys.path.insert(0, str(ROOT))
  if _ONE.value:
    settings = bench_contenders.Settings(
      folder=_FOLDER.value,
      tokenizer=_TOKENIZER.value,
      bos_id=_BOS.value,
      eos_id=_EOS.value,
      workers=_WORKERS.value,
    )
    work = bench_contenders.CONTENDERS[_ONE.value](settings)
    begun = time.monotonic()
    facts = work()
    facts.update(seconds=time.monotonic() - begun, begun=begun)
    print('RESULT' + json.dumps(facts), flush=True)
    return
  names = ['ours', *_PEERS.value]
  for name in list(names):
    missing = [
      m for m in bench_contenders.NEEDS[name] if not importlib.util.find_spec(m)
    ]
    if missing and name != 'ours':
      print(f'{name}: not installed ({", ".join(missing)})')
      names.remove(name)
  with tempfile.TemporaryDirectory() as folder:
    size = write_input(folder)
    print(f'{size / 1e6:.1f} MB of text, {_TOKENIZER.value}')
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(_ROUNDS.value):
      for name in names:
        result = run(name, folder)
        if result:
          results[name].append(result)
    report(size, results)
    result = run('reader', folder)
    for name, rate in result.facts.items() if result else ():
      print(f'grain reader, {name}: {rate / 1e6:.2f}M tokens/s per core')


def report(size: int, results: dict[str, list[Result]]) -> None:
  """Prints a line for each contender, and how it compares with ours."""
  print(
    f'{"":18}{"MB/s":>8}{"tokens/s":>10}{"seconds":>9}{"start":>7}{"CPU s":>8}'
    f'{"peak MB":>9}{"tokens":>12}  ours is'
  )
  own = results['ours']
  base = statistics.median(r.seconds for r in own)
  for name, runs in results.items():
    if not runs:
      print(f'{name:18}failed')
      continue
    seconds = statistics.median(r.seconds for r in runs)
    tokens = runs[0].facts['tokens']
    print(
      f'{name:18}{size / seconds / 1e6:8.2f}{tokens / seconds:10.0f}'
      f'{seconds:9.1f}{statistics.median(r.start for r in runs):7.1f}'
      f'{statistics.median(r.cpu for r in runs):8.1f}'
      f'{max(r.memory for r in runs) / 1e6:9.0f}{tokens:12}'
      f'  {seconds / base:.2f}x as fast'
    )
    difference = tokens - own[0].facts['tokens']
    if difference and name == 'seqio':
      difference += own[0].facts['zeros']
      print("  its statistics leave out id 0, which is an unknown piece's here")
    if difference:
      print(f'  {difference:+} tokens, which nothing explains')


if __name__ == '__main__':
  flags.mark_flags_as_required(['files', 'tokenizer'])
  app.run(main)
