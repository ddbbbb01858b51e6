"""A synthetic workdir, with losses and keep sets that nobody trained for."""

import dataclasses
import io
import json
import posixpath
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import only_arms

from configs import base, baselines
from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
  selection as rule_config,
)
from infoprune_jax.report.selection import inputs, page as selection_page
from infoprune_jax.runtime import artifacts, files
from infoprune_jax.runtime.workdir import (
  data_file,
  evaluation_dir,
  keep_set_dir,
  reference_dir,
  run_dir,
  scores_dir,
  statistics_dir,
  token_store_dir,
  vocabulary_dir,
)
from infoprune_jax.selection import (
  keep_set,
  rule_inputs,
  rules,
  shown,
  summary,
)
from infoprune_jax.selection.examples import ExampleTable, scored_examples
from infoprune_jax.tokens.token_store import TokenStore

SCORED = 300  # documents of each source
HOSTILE_TEXT = '<script>alert("text")</script>\n\t<img src=x onerror=alert(1)>'
HOSTILE_SOURCE = '<script>alert("source")</script>'
TRAINED = dict(
  step=500,
  tokens=500 * 4096,
  flops=2e13,
  num_params=1_200_000,
  devices=1,
  platform='cpu',
)
# Nats per token above the random arm's.
EFFECT = {
  'full': -0.01,
  'random': 0.0,
  'top_nll': -0.03,
  'top_sum': -0.05,
  'bottom_nll': 0.12,
  'top_nll_25': -0.06,
  'everything': -0.02,
  'late': -0.04,
  'random_x0_7': 0.04,
  'random_x1_4': -0.04,
}


@dataclasses.dataclass(frozen=True)
class Corpus:
  """How large a synthetic workdir is."""

  num_sources: int = 3
  num_documents: int = 40  # held out, in each source
  seeds: tuple[int, ...] = (0, 1)
  arms: tuple[str, ...] = ()  # of `experiment`, in its order; () for all
  everything: bool = False  # adds an arm of that name
  late: bool = False  # adds an arm that starts from the run of `full`
  budgets: tuple[float, ...] = ()  # of `random`
  sweep: bool = False  # adds `top_nll` with a fraction of 0.25
  kinds: bool = False
  folds: int = 1  # that scored the examples in turn


def experiment(corpus: Corpus) -> config_lib.Config:
  """Arms of the base config and `baselines.information`."""
  edits = base.get_config()
  edits.select.arms.update(baselines.information(fraction=0.5))
  if corpus.sweep:
    edits.select.arms.update(
      base.sweep('top_nll', 'top', base.INFORMATION, fractions=(0.25,))
    )
  edits.corpus.sources.web = base.text('web/*.txt')
  edits.train.seeds = corpus.seeds
  if corpus.arms:
    only_arms(edits, *corpus.arms)
  if corpus.everything:
    edits.select.arms.everything = base.arm('all_plus_reference')
  if corpus.late:
    rule = base.arm('top', base.INFORMATION, fraction=0.5)
    edits.select.arms.late = base.branch('full', at=0.4, then=rule)
  if corpus.budgets:
    edits.train.training.schedule = 'wsd'
    edits.train.budgets = corpus.budgets
  edits.report.bootstrap_samples = 200
  edits.report.num_examples = 3
  if corpus.kinds:
    edits.report.kinds = {'numbered': ('source-*',), 'hostile': ('<*',)}
  return config_lib.from_mapping(edits)


def source_names(count: int) -> list[str]:
  """Names, the first of them hostile."""
  return [HOSTILE_SOURCE] + [f'source-{k:02d}' for k in range(1, count)]


def write_artifact(
  path: str, tables: list[dict], made_from: dict[str, str], **facts
) -> str:
  """An artifact of Parquet parts, finished; returns its fingerprint."""
  # Fingerprints differ by place, and not by where the test runs.
  options = {'path': path.split('/demo')[-1]}
  artifact = artifacts.Artifact(path, 'test', 'test', options, made_from)
  files = {}
  for part, columns in enumerate(tables):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    marker = artifact.finish_shard(
      part,
      len(tables),
      {
        data_file(part, len(tables)): (
          lambda file, data=buffer: file.write(data.getvalue())
        )
      },
      num_examples=len(columns['shard']),
    )
    files.update(marker['files'])
  return artifact.finish(files, **facts)['fingerprint']


def documents(
  corpus: Corpus, count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
  """`count` documents a source, some of them copies, without losses."""
  total = corpus.num_sources * count
  tokens = rng.lognormal(5.0, 0.8, total).astype(np.int32)
  tokens[0] = 0
  content_hash = rng.integers(-(2**63), 2**63, total)
  content_hash[1::20] = content_hash[0]
  names = np.repeat(np.array(source_names(corpus.num_sources)), count)
  return {
    'shard': (np.arange(total) % 2).astype(np.int32),
    'doc_index': np.arange(total) // 2,
    'example_id': np.array([f'id-{i}' for i in range(total)]),
    'source': pa.array(names).dictionary_encode(),
    'num_tokens': tokens,
    'num_bytes': (tokens * 3.7).astype(np.int32),
    'content_hash': content_hash,
  }


def split_in_two(columns: dict) -> list[dict]:
  """Two parts, the second with a dictionary of its own."""
  middle = len(columns['shard']) // 3
  halves = [
    {name: values[:middle] for name, values in columns.items()},
    {name: values[middle:] for name, values in columns.items()},
  ]
  for half in halves:
    half['source'] = half['source'].cast(pa.string()).dictionary_encode()
  return halves


def write_scores(
  workdir: str,
  corpus: Corpus,
  rng: np.random.Generator,
  made_from: dict[str, str],
) -> dict[str, str]:
  """Scores and statistics; returns their fingerprints."""
  columns = documents(corpus, SCORED, rng)
  tokens = columns['num_tokens']
  mean = np.repeat(rng.normal(3.4, 0.3, corpus.num_sources), SCORED)
  mean = mean + rng.gamma(3.0, 0.25, len(tokens)) - 0.7
  folds = (np.arange(len(tokens)) % corpus.folds).astype(np.int8)
  counted = {
    'unigram_nll_sum': 7.0 * tokens,
    'unigram_frequency_sum': 0.01 * tokens,
    'unigram_frequency_square_sum': 0.0002 * tokens,
    'compressed_bytes': columns['num_bytes'] // 2,
  }
  fingerprints = {
    'statistics': write_artifact(
      statistics_dir(workdir),
      [
        {name: half[name] for name in ('shard', 'doc_index', *counted)}
        for half in split_in_two({**columns, **counted})
      ],
      {'token_store': made_from['token_store']},
    )
  }
  fingerprints['scores'] = write_artifact(
    scores_dir(workdir),
    split_in_two({**columns, 'nll_sum': mean * tokens, 'fold': folds}),
    made_from,
    num_examples=len(tokens),
    num_tokens=int(tokens.sum()),
    flops=4e12,
    reference=TRAINED,
  )
  return fingerprints


def write_keep_set(
  workdir: str,
  examples: ExampleTable,
  arm: str,
  name: str,
  rules_: tuple[rule_config.RuleConfig, ...],
  scores: str,
  made_from: dict[str, str],
) -> str:
  """A keep set by a smooth rule of the arm's own; returns its fingerprint."""
  decile, number = summary.nll_deciles(examples), np.arange(len(examples))
  kept = {
    'full': decile >= 0,
    'random': number % 2 == int(name[-1] == '1'),
    'top_nll': decile >= 5,
    'top_nll_25': decile >= 7,
    'top_sum': (decile >= 5) ^ (number % 7 == 0),
    'bottom_nll': decile < 5,
    'everything': decile >= 0,
    'late': decile >= 5,
  }[arm]
  ranked = any(rule.needs_score for rule in rules_)
  decision = None
  if ranked:
    whole = np.ones(len(examples), bool)
    mean = summary.mean_nll(examples)
    decision = shown.Decision(rules_[-1], mean, whole, kept)
  content = {
    'version': inputs.SUMMARY_VERSION,
    'scores': scores,
    **summary.summarize(examples, kept),
    **shown.examples_of(examples, kept, decision, 3),
  }
  content['ranked_within_folds'] = any(
    rules.ranked_within_folds(examples, rule.score) for rule in rules_
  )
  mask = np.zeros(2 * len(examples), bool)
  mask[examples.index[kept]] = True
  if arm == 'everything':
    added = {source_names(1)[0]: 60_000}
    content['added'] = dict(examples=70, tokens=60_000, bytes=9, sources=added)
    mask[:] = True
  path = keep_set_dir(workdir, name)
  files.write_record(posixpath.join(path, 'summary.json'), content)
  artifact = artifacts.Artifact(path, 'test', 'test', {}, made_from)
  return keep_set.write(artifact, mask)['fingerprint']


def write_run(
  workdir: str,
  corpus: Corpus,
  arm: str,
  seed: int,
  rng: np.random.Generator,
  kept: dict[str, str],
) -> str:
  """A training run; step 100 was logged twice, by a resume."""
  path = run_dir(workdir, arm, seed)
  lines = []
  for step in (0, 50, 100, 100, 200, 300, 400, 500):
    bits = 1.9 + 2.4 * np.exp(-step / 90.0) + EFFECT[arm] * step / 1500
    bits += rng.normal(0.0, 0.003)
    line = {'step': step, 'tokens': step * 4096}
    names = source_names(corpus.num_sources)
    by_source = {f'heldout_nll/{name}': bits * 2.5 for name in names}
    lines += [
      {**line, 'loss': 3.0},
      {
        **{**line, 'heldout_nll': bits * 2.5, 'heldout_bits_per_byte': bits},
        **by_source,
      },
    ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  metrics = files.write_text(posixpath.join(path, 'metrics.jsonl'), text)
  facts = {'epochs': 1.0 if arm == 'full' else 2.0, **TRAINED}
  if arm == 'everything':  # 500 steps more for the reference, 100 for scoring.
    facts.update(step=1100, tokens=1100 * 4096, flops=4.4e13)
  if arm == 'late':
    facts['shared_steps'] = 200
  if '_x' in arm:
    budget = float(arm.partition('_x')[2].replace('_', '.'))
    facts.update(step=round(budget * 500), flops=budget * 2e13)
    facts.update(tokens=round(budget * 500) * 4096, shared_steps=280)
  return write_artifact(path, [], kept, metrics=metrics, **facts)


def write_workdir(
  workdir: str, corpus: Corpus, selection_name: Callable[..., str]
) -> config_lib.Config:
  """Every artifact that the report reads."""
  made = experiment(corpus)
  rng = np.random.default_rng(0)
  counts = {'documents': 1000, 'tokens': 200_000, 'bytes': 700_000}
  write_artifact(vocabulary_dir(workdir), [], {})
  store = write_artifact(
    token_store_dir(workdir),
    [],
    {},
    num_documents=3000,
    num_shards=2,
    documents_per_shard=[SCORED * corpus.num_sources] * 2,
    num_tokens=600_000,
    num_bytes=2_100_000,
    splits=dict.fromkeys(corpus_config.SPLITS, counts),
    vocab_size=4096,
    bad_records={'empty text': 12},
  )
  reference = write_artifact(
    reference_dir(workdir), [], {'token_store': store}, **TRAINED
  )
  scores = write_scores(
    workdir, corpus, rng, {'token_store': store, 'reference': reference}
  )
  examples = scored_examples(workdir, TokenStore.open(workdir))
  heldout = documents(corpus, corpus.num_documents, rng)
  tokens = heldout['num_tokens']
  nats = 3.4 + rng.normal(0.0, 0.4, len(tokens))
  tilt = rng.normal(1.0, 0.4, corpus.num_sources)
  tilt = np.repeat(tilt, corpus.num_documents)
  kept: dict[tuple[str, int], str] = {}
  for arm, seed in made.runs:
    of = 'random' if arm in made.budget_arms else arm
    rules_ = made.select.arms[of]
    made_from = {'token_store': store}
    if rule_inputs.reads_tables(rules_):
      made_from |= scores
    if of == arm:
      name = selection_name(made.select, arm, seed)
      kept[arm, seed] = write_keep_set(
        workdir, examples, arm, name, rules_, scores['scores'], made_from
      )
    phases = [keep_set_ for _, keep_set_ in made.select.phases(of)]
    inputs_ = {
      'keep_set' if one == arm else f'keep_set/{one}': kept[one, seed]
      for one in phases
    }
    run = write_run(workdir, corpus, arm, seed, rng, inputs_)
    mean_nll = nats + EFFECT[arm] * tilt + rng.normal(0.0, 0.01)
    mean_nll = mean_nll + rng.normal(0.0, 0.05, len(tokens))
    write_artifact(
      evaluation_dir(workdir, arm, seed),
      split_in_two({**heldout, 'nll_sum': mean_nll * tokens}),
      {'token_store': store, 'run': run},
    )
  selection_page.run(made, workdir)
  return made


@pytest.fixture(scope='session')
def make_workdir(
  tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., tuple[config_lib.Config, str]]:
  """Writes a workdir of a given size, in a folder of its own."""
  from infoprune_jax.selection.keep_set import selection_name

  def make(**sizes) -> tuple[config_lib.Config, str]:
    workdir = str(tmp_path_factory.mktemp('report') / 'demo')
    return write_workdir(workdir, Corpus(**sizes), selection_name), workdir

  return make


@pytest.fixture(scope='module', autouse=True)
def _hostile_texts() -> Iterator[None]:
  """Markup, whatever the example: there is no token store to read."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      inputs,
      'texts_of',
      lambda workdir, examples: dict.fromkeys(
        examples, HOSTILE_TEXT + 'x' * 500
      ),
    )
    yield


@pytest.fixture(scope='session')
def hostile() -> dict[str, str]:
  """What a corpus may hold: a `text` and the name of a `source`."""
  return {'text': HOSTILE_TEXT, 'source': HOSTILE_SOURCE}
