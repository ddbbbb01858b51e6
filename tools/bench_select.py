r"""How long rules take, and how much memory, over made-up scores of any number.

Command: python tools/bench_select.py --millions=1,10,100

Writes tables of scores and of statistics with so many examples, of lognormal
lengths and 58 sources, and for each rule, in a process of its own, selects,
summarizes, writes the keep set and opens it. Peak memory is all that the process
had at once, scratch files included; these are at $TMPDIR.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
import pyarrow as pa
from absl import app, flags

from infoprune_jax import artifacts
from infoprune_jax.data import keep_set
from infoprune_jax.rule_config import RuleConfig
from infoprune_jax.score import table
from infoprune_jax.selection import rules as rules_lib, summary
from infoprune_jax.selection.examples import ExampleParts

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from configs import base

_MILLIONS = flags.DEFINE_list('millions', ['1', '10'], 'Examples, in millions.')
_RULES = flags.DEFINE_list('rules', [], 'Names of rules; all if none is given.')
_CHILD = flags.DEFINE_string('child', '', 'The work of one process, as JSON.')
_PART = 1_000_000
_STORE = 'f' * 16
_MEAN = 'nll_sum / greatest(num_tokens, 1)'
_UNIGRAM = 'unigram_nll_sum / greatest(num_tokens, 1)'
RULES = {
  'top': base.arm('top', _MEAN, fraction=0.5),
  'top per source': base.arm('top', _MEAN, fraction=0.5, per='source'),
  'middle': base.arm('middle', _MEAN, fraction=0.5),
  'sum of ranks': base.arm(
    'top', f'rank({_MEAN}) + rank({_UNIGRAM})', fraction=0.5
  ),
  'sample': base.arm('sample', _MEAN, fraction=0.5, temperature=0.5),
  'random': base.arm('random', fraction=0.5),
  'distinct': base.arm('distinct'),
}


def main(_) -> None:
  """Prints seconds, examples a second, and peak memory."""
  if _CHILD.value:
    print(json.dumps(select(**json.loads(_CHILD.value))))
    return
  for millions in map(int, _MILLIONS.value):
    with tempfile.TemporaryDirectory(prefix='bench-select-') as workdir:
      parts = [_PART] * millions
      write_tables(workdir, parts)
      for name in _RULES.value or RULES:
        found = in_process(workdir, name, len(parts))
        rate = millions / found['seconds']
        print(
          f'{millions:4}M {name:15} {found["seconds"]:6.1f} s '
          f'({rate:.1f}M examples/s, {found["rules"]:.1f} s of them for the '
          f'rule), {found["peak"] / 1e9:.2f} GB; keep set of '
          f'{found["bytes"] / 1e6:.1f} MB opens in {found["open"]:.2f} s',
          flush=True,
        )


def write_tables(workdir: str, parts: list[int]) -> None:
  """Score and statistics tables of parts of these sizes."""
  schemas = {
    'scores': table.score_schema(['nll_sum']),
    'statistics': table.STATISTICS_SCHEMA,
  }
  made = {
    name: artifacts.Artifact(
      getattr(artifacts, f'{name}_dir')(workdir),
      name,
      name,
      {},
      {'token_store': _STORE},
    )
    for name in schemas
  }
  files: dict[str, dict] = {name: {} for name in made}
  for artifact in made.values():
    artifact.begin()
  sources = [f'source-{n:02d}' for n in range(58)]
  for part, size in enumerate(parts):
    rng = np.random.default_rng(part)
    tokens = rng.lognormal(5.5, 1.2, size).astype(np.int32) + 1
    columns = {
      'shard': np.full(size, part, np.int32),
      'row': np.arange(size),
      'example_id': pa.array([f'{part}-{n}' for n in range(size)]),
      'source': pa.DictionaryArray.from_arrays(
        rng.integers(0, 58, size).astype(np.int32), sources
      ),
      'num_tokens': tokens,
      'num_bytes': 4 * tokens,
      'nll_sum': tokens * rng.gamma(9.0, 0.35, size),
      'content_hash': rng.integers(0, 2**40, size),
      'fold': np.zeros(size, np.int8),
      'unigram_nll_sum': tokens * rng.normal(7.0, 0.5, size),
      'unigram_frequency_sum': 0.01 * tokens,
      'unigram_frequency_square_sum': 0.001 * tokens,
      'compressed_bytes': tokens,
    }
    for name, schema in schemas.items():
      chosen = pa.table([columns[c] for c in schema.names], schema=schema)
      marker = made[name].finish_part(
        part,
        len(parts),
        {'.parquet': lambda file, chosen=chosen: table.write(chosen, file)},
        num_examples=size,
      )
      files[name].update(marker['files'])
  for name, artifact in made.items():
    artifact.finish(files[name], num_parts=len(parts))


def in_process(workdir: str, rule: str, num_parts: int) -> dict[str, float]:
  """`select` in a process of its own, whose memory is that of the rule."""
  given = json.dumps({'workdir': workdir, 'rule': rule, 'num_parts': num_parts})
  command = [sys.executable, __file__, f'--child={given}']
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def select(workdir: str, rule: str, num_parts: int) -> dict[str, float]:
  """Selects by one rule, as the stage does; seconds and bytes."""
  start = time.perf_counter()
  sizes = [_PART] * num_parts
  store = types.SimpleNamespace(
    documents_per_part=sizes,
    manifest={'fingerprint': _STORE, 'num_parts': num_parts},
  )
  chosen = RuleConfig(**RULES[rule])
  examples = ExampleParts(workdir, sizes)
  kept = rules_lib.apply((chosen,), examples, 0)
  ruled = time.perf_counter() - start
  ranking = (
    rules_lib.ranking(examples, chosen.score) if chosen.needs_score else None
  )
  found = summary.summarize(examples, kept, ranking, 10)
  name = rule.replace(' ', '_')
  artifact = artifacts.Artifact(
    artifacts.keep_set_dir(workdir, name),
    'keep set',
    'select',
    {},
    {'token_store': _STORE},
  )
  artifact.begin()
  keep_set.write(artifact, kept, kept=found['kept'], total=found['total'])
  seconds = time.perf_counter() - start
  start = time.perf_counter()
  opened = keep_set.KeepSet.open(workdir, name, store)
  return {
    'seconds': seconds,
    'rules': ruled,
    'open': time.perf_counter() - start,
    'bytes': opened.bits.nbytes,
    'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }


if __name__ == '__main__':
  app.run(main)
