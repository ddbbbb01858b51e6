r"""Time and memory of rules over any number of made-up scores.

Command: python tools/bench_select.py --millions=1,10,100

Writes tables of scores and of statistics with lognormal lengths and 58 sources.
For each rule, a process of its own selects, summarizes, writes the keep set and
opens it. Then writes the page on all rules, with made-up texts. Peak memory is
that of the process, with its scratch files, which are in $TMPDIR.
"""

import json
import pathlib
import posixpath
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
from absl import app, flags, logging
from ml_collections import ConfigDict

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.arms import SelectConfig
from infoprune_jax.config.selection import RuleConfig
from infoprune_jax.report.selection import inputs, page as selection_page
from infoprune_jax.runtime import (
  artifacts,
  files as files_lib,
  manifests,
  workdir as workdir_paths,
)
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  selection_report_dir,
  token_store_dir,
  vocabulary_dir,
)
from infoprune_jax.selection import (
  keep_set,
  select as select_lib,
  shown,
  summary,
)
from infoprune_jax.selection.examples import ExampleShards
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from configs import base

_MILLIONS = flags.DEFINE_list('millions', ['1', '10'], 'Examples, in millions.')
_RULES = flags.DEFINE_list('rules', [], 'Names of rules; all if none is given.')
_CHILD = flags.DEFINE_string('child', '', 'The work of one process, as JSON.')
_PART = 1_000_000
_MEAN = 'nll_sum / greatest(num_tokens, 1)'
_UNIGRAM = 'unigram_nll_sum / greatest(num_tokens, 1)'
_CURVE = ((0.0, 0.0), (0.4, 1.0), (0.95, 7.0))
RULES = {
  'top': base.arm('top', _MEAN, fraction=0.5),
  'top per source': base.arm('top', _MEAN, fraction=0.5, per='source'),
  'top per groups': base.arm(
    'top', _MEAN, fraction=0.5, per='source, num_tokens // 100'
  ),
  'top per many groups': base.arm(
    'top', _MEAN, fraction=0.5, per='content_hash % 100_000'
  ),
  'top per ntile': base.arm(
    'top', _MEAN, fraction=0.5, per='ntile(10, num_tokens)'
  ),
  'top of fractions': base.arm(
    'top',
    _MEAN,
    fraction={'source-00': 1.0, 'source-01': 0.1, '*': 0.5},
    per='source',
  ),
  'middle': base.arm('middle', _MEAN, fraction=0.5),
  'sum of ranks': base.arm(
    'top', f'rank({_MEAN}) + rank({_UNIGRAM})', fraction=0.5
  ),
  'sample': base.arm('sample', _MEAN, fraction=0.5, temperature=0.5),
  'repeat': base.arm('repeat', _MEAN, curve=_CURVE),
  'repeat per source': base.arm('repeat', _MEAN, curve=_CURVE, per='source'),
  'repeat by expression': base.arm(
    'repeat', "CASE WHEN source = 'source-03' THEN 2.5 ELSE 1.2 END"
  ),
  'random': base.arm('random', fraction=0.5),
  'distinct': base.arm('distinct'),
}


def main(_) -> None:
  """Prints seconds of clocks and of processors, and peak memory."""
  logging.set_verbosity(logging.WARNING)
  if _CHILD.value:
    given = json.loads(_CHILD.value)
    print(
      json.dumps(select(**given) if 'rule' in given else write_page(**given))
    )
    return
  for millions in map(int, _MILLIONS.value):
    with tempfile.TemporaryDirectory(prefix='bench-select-') as workdir:
      shards = [_PART] * millions
      write_manifests(workdir, shards)
      write_tables(workdir, shards)
      names = _RULES.value or list(RULES)
      for name in names:
        result = in_process(workdir=workdir, rule=name)
        print(
          f'{millions:4}M {name:20} {result["seconds"]:6.1f} s; of processors '
          f'{result["processor"]:6.1f} s, {result["rules"]:6.1f} s of them for '
          f'the rule; {result["peak"] / 1e9:.2f} GB; keep set of '
          f'{result["bytes"] / 1e6:.1f} MB opens in {result["open"]:.2f} s',
          flush=True,
        )
      result = in_process(workdir=workdir, rules=names)
      print(
        f'{millions:4}M page on {len(names)} arms '
        f'{result["seconds"]:6.1f} s, {result["peak"] / 1e9:.2f} GB; '
        f'{result["bytes"] / 1e6:.1f} MB',
        flush=True,
      )


def write_manifests(workdir: str, shards: list[int]) -> None:
  """A vocabulary and a token store that hold nothing: shards of these sizes."""
  counts = {name: sum(shards) for name in ('documents', 'tokens', 'bytes')}
  for path, kind, facts in (
    (vocabulary_dir(workdir), 'vocabulary', {}),
    (
      token_store_dir(workdir),
      'token store',
      dict(
        num_shards=len(shards),
        documents_per_shard=shards,
        splits={'scored': counts},
        **{f'num_{name}': count for name, count in counts.items()},
        vocab_size=2**15,
        bad_records={},
      ),
    ),
  ):
    artifacts.Artifact(path, kind, 'tokenize', {}, {}).finish({}, **facts)


def write_tables(workdir: str, shards: list[int]) -> None:
  """Score and statistics tables of shards of these sizes."""
  schemas = {
    'scores': tables.score_schema(['nll_sum']),
    'statistics': tables.STATISTICS_SCHEMA,
  }
  store = TokenStore.open(workdir)
  made = {
    name: artifacts.Artifact(
      getattr(workdir_paths, f'{name}_dir')(workdir),
      name,
      name,
      {},
      {'token_store': store.fingerprint},
    )
    for name in schemas
  }
  files: dict[str, dict] = {name: {} for name in made}
  for artifact in made.values():
    artifact.begin()
  sources = [f'source-{n:02d}' for n in range(58)]
  for shard, size in enumerate(shards):
    rng = np.random.default_rng(shard)
    tokens = rng.lognormal(5.5, 1.2, size).astype(np.int32) + 1
    columns = {
      'shard': np.full(size, shard, np.int32),
      'doc_index': np.arange(size),
      'example_id': pa.array([f'{shard}-{n}' for n in range(size)]),
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
      marker = made[name].finish_shard(
        shard,
        len(shards),
        tables.shard_file(chosen, shard, len(shards)),
        num_examples=size,
      )
      files[name].update(marker['files'])
  for name, artifact in made.items():
    artifact.finish(
      files[name],
      num_shards=len(shards),
      num_examples=sum(shards),
      num_tokens=0,
      flops=0.0,
      reference=dict(num_params=0, step=0, tokens=0, flops=0.0),
    )


def in_process(**given: str | list[str]) -> dict[str, float]:
  """`select`, or `write_page`, in a process of its own, whose memory it is."""
  command = [sys.executable, __file__, f'--child={json.dumps(given)}']
  done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def select(workdir: str, rule: str) -> dict[str, float]:
  """Selects by one rule, as the stage does; seconds and bytes."""
  start, used = time.perf_counter(), time.process_time()
  store = TokenStore.open(workdir)
  chosen = RuleConfig(**RULES[rule].to_dict())
  examples = ExampleShards(workdir, store)
  kept, decision = select_lib.decide((chosen,), examples, 0)
  ruled = time.process_time() - used
  counts = summary.summarize(examples, kept)
  is_used = kept.astype(bool, copy=False)
  counts |= shown.examples_of(examples, is_used, decision, 10)
  arms = SelectConfig(arms={arm_of(rule): (chosen,)})
  name = keep_set.selection_name(arms, arm_of(rule), 0)
  written = {
    job: manifests.read_manifest(f'{workdir}/{job}', job)['fingerprint']
    for job in ('scores', 'statistics')
  }
  artifact = artifacts.Artifact(
    keep_set_dir(workdir, name),
    'keep set',
    'select',
    {},
    {'token_store': store.fingerprint, **written},
  )
  artifact.begin()
  about = {
    'version': inputs.SUMMARY_VERSION,
    'scores': written['scores'],
    'ranked_within_folds': False,
  }
  path = posixpath.join(artifact.path, keep_set.SUMMARY)
  files_lib.write_record(path, {**about, **counts})
  keep_set.write(artifact, kept, kept=counts['kept'], total=counts['total'])
  seconds, processor = time.perf_counter() - start, time.process_time() - used
  start = time.perf_counter()
  opened = keep_set.KeepSet.open(workdir, name, store)
  return {
    'seconds': seconds,
    'processor': processor,
    'rules': ruled,
    'open': time.perf_counter() - start,
    'bytes': opened.data.nbytes,
    'peak': peak(),
  }


def write_page(workdir: str, rules: list[str]) -> dict[str, float]:
  """Writes the page on the arms that were selected; seconds and bytes."""
  edits = base.get_config()
  edits.corpus.sources.none = base.text('*.txt')
  edits.select.arms = ConfigDict(
    {arm_of(name): RULES[name] for name in rules}, sort_keys=False
  )
  edits.train.seeds = (0,)
  edits.report.baseline = arm_of(rules[0])
  # Of documents whose tokens nobody made.
  inputs.texts_of = lambda _, keys: dict.fromkeys(keys, 'text ' * 90)
  start = time.perf_counter()
  selection_page.run(config_lib.from_mapping(edits), workdir)
  seconds = time.perf_counter() - start
  page = f'{selection_report_dir(workdir)}/index.html'
  return {
    'seconds': seconds,
    'bytes': pathlib.Path(page).stat().st_size,
    'peak': peak(),
  }


def arm_of(rule: str) -> str:
  """The name of the arm of a rule."""
  return rule.replace(' ', '_')


def peak() -> int:
  """Bytes that this process had at once."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == '__main__':
  app.run(main)
