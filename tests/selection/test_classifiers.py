"""Classifiers of good and bad texts: trained, applied, read by rules."""

import dataclasses
import json
import logging
import pathlib
import random
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
from changed_artifacts import rewrite, with_value
from ml_collections import ConfigDict

from configs import base
from infoprune_jax import stage, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import job as export_job
from infoprune_jax.runtime import files, manifests
from infoprune_jax.selection import rules, select
from infoprune_jax.selection.examples import scored_examples
from infoprune_jax.statistics import classify, example_texts
from infoprune_jax.tokens.tables import read_table
from infoprune_jax.tokens.token_store import TokenStore
from infoprune_jax.tokens.vocabulary import Vocabulary
from infoprune_jax.verify import workdir as verify

COLUMN = 'classifier_quality'


def write_texts(path: pathlib.Path, low: float, count: int = 60) -> str:
  """Texts of random numbers, as those of the corpus, from `low` to low + 0.5."""
  rng = random.Random(low)
  lines = [
    ' '.join(f'{low + rng.random() / 2:.3f}' for _ in range(rng.randint(5, 40)))
    for _ in range(count)
  ]
  path.write_text(''.join(json.dumps({'text': t}) + '\n' for t in lines))
  return str(path)


@pytest.fixture(scope='module')
def edits(experiment, tmp_path_factory) -> ConfigDict:
  folder = tmp_path_factory.mktemp('texts')
  made = experiment.copy_and_resolve_references()
  made.train.seeds = (0,)
  made.classifiers.quality = base.classifier(
    good=base.jsonl(write_texts(folder / 'good.jsonl', 0.0)),
    bad=base.jsonl(write_texts(folder / 'bad.jsonl', 0.5)),
    hash_bits=12,
  )
  made.select.arms.update(
    base.sweep('quality', 'top', COLUMN, fractions=(0.3, 0.6))
  )
  return made


@pytest.fixture(scope='module')
def config(edits) -> config_lib.Config:
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def classified(config, scored, tmp_path_factory) -> str:
  workdir = str(tmp_path_factory.mktemp('classified') / 'work')
  shutil.copytree(scored, workdir)
  classify.run(config, workdir)
  return workdir


def odds_of(workdir: str) -> np.ndarray:
  examples = scored_examples(workdir, TokenStore.open(workdir))
  return examples.column(COLUMN, np.float64)


def test_good_examples_get_higher_odds(classified):
  store = TokenStore.open(classified)
  examples = scored_examples(classified, store)
  words = Vocabulary.load(f'{classified}/vocabulary')
  keys = examples.table.select(['shard', 'doc_index']).to_pylist()
  mean = [
    np.mean(
      [float(n) for n in words.decode(store.document(*key.values())).split()]
    )
    for key in keys
  ]
  # A number below 0.5 is as good texts have them.
  assert np.corrcoef(odds_of(classified), mean)[0, 1] < -0.4


def test_a_rule_keeps_the_highest_odds(config, classified, tmp_path):
  workdir = shutil.copytree(classified, str(tmp_path / 'work'))
  examples = scored_examples(workdir, TokenStore.open(workdir))
  kept = rules.apply(config.select.arms['quality_30'], examples, draw=0)
  odds = odds_of(workdir)
  assert 0 < kept.sum() < len(kept)
  assert odds[kept].min() >= odds[~kept].max()


def stale(config: config_lib.Config, workdir: str) -> set[str]:
  _, _, states = stage.compare(stages.STAGES, config, workdir, ['select'])
  return {p.partition('work/')[2] for p, one in states.items() if one.causes}


def test_the_job_sweep_reports_it(config, classified, tmp_path, caplog):
  workdir = shutil.copytree(classified, str(tmp_path / 'work'))
  with caplog.at_level(logging.INFO, logger='infoprune_jax'):
    stages.STAGES['sweep'].run(config, workdir)
  assert 'quality, by fraction' in caplog.text
  made_from = manifests.read_manifest(f'{workdir}/keep_sets/quality_30', 'x')
  table = manifests.read_manifest(f'{workdir}/classifiers/quality', 'x')
  assert made_from['inputs'][COLUMN] == table['fingerprint']
  report = files.read_json(f'{workdir}/selection_report/selections.json')
  assert [a['name'] for a in report['sweeps'][0]['arms']] == [
    'quality_30',
    'quality_60',
  ]
  # Another classifier makes stale what was made with it.
  other = dataclasses.replace(config.classifiers['quality'], ngram=1)
  changed = dataclasses.replace(config, classifiers={'quality': other})
  # No reference model made these scores, so keep sets are stale already.
  assert stale(changed, workdir) - stale(config, workdir) == {
    'classifiers/quality'
  }
  keep_sets = stages.STAGES['select'].artifacts(config, workdir)
  readers = [one.path for one in keep_sets if COLUMN in one.made_from]
  assert [path.rpartition('/')[2] for path in readers] == [
    'quality_30',
    'quality_60',
  ]


def test_exports_have_the_odds(config, classified, tmp_path):
  workdir = shutil.copytree(classified, str(tmp_path / 'work'))
  export = dataclasses.replace(config.export, formats=('scores',))
  config = dataclasses.replace(config, export=export)
  select.run(config, workdir)
  export_job.run(config, workdir)
  [planned] = stages.STAGES['export'].artifacts(config, workdir)
  written = manifests.read_manifest(planned.path, 'export')
  assert {*written['inputs']} == {*planned.made_from}
  table = read_table(planned.path)
  odds, is_scored = table[COLUMN], pc.equal(table['split'], 'scored')
  assert is_scored.equals(pc.is_valid(odds)) and odds.null_count
  np.testing.assert_array_equal(odds.drop_null(), odds_of(workdir))


def test_other_texts_make_it_stale(edits, config, classified, tmp_path):
  path = pathlib.Path(config.classifiers['quality'].good[0].paths[0])
  assert stages.state('classify', config, classified).kind == 'finished'
  before = path.read_text()
  path.write_text(before + json.dumps({'text': 'one more'}) + '\n')
  assert stages.state('classify', config, classified).kind == 'stale'
  # Where the texts are not, the table stays as it is.
  path.rename(tmp_path / 'elsewhere')
  assert stages.state('classify', config, classified).kind == 'finished'
  classify.run(config, classified)
  path.write_text(before)


def test_a_killed_job_goes_on_to_the_same_table(config, classified, tmp_path):
  workdir = shutil.copytree(classified, str(tmp_path / 'work'))
  folder = pathlib.Path(workdir, 'classifiers/quality')
  shard = folder / 'data/part-00001-of-00003.parquet'
  before = shard.read_bytes()
  for name in ('manifest.json', 'part-00001-of-00003.done'):
    (folder / name).unlink()
  shard.unlink()
  model = (folder / 'model/weights.npy').stat().st_mtime_ns
  classify.run(config, workdir)
  assert shard.read_bytes() == before
  assert (folder / 'model/weights.npy').stat().st_mtime_ns == model
  # From the start, too.
  shutil.rmtree(folder)
  classify.run(config, workdir)
  assert shard.read_bytes() == before


def test_verify_sees_what_is_wrong(classified, tmp_path):
  workdir = shutil.copytree(classified, str(tmp_path / 'work'))
  found = {s.path.partition('work/')[2]: p for s, p in verify.check(workdir)}
  assert (
    found['classifiers/quality'] == found['classifiers/quality/model'] == []
  )
  folder = pathlib.Path(workdir, 'classifiers/quality')
  rewrite(folder, with_value(COLUMN, 2, float('nan')))
  weights = folder / 'model/weights.npy'
  weights.write_bytes(weights.read_bytes()[:-1])
  found = {s.path.partition('work/')[2]: p for s, p in verify.check(workdir)}
  assert COLUMN in found['classifiers/quality'][0]
  assert found['classifiers/quality/model']


def test_figures_are_of_texts_that_are_held_out(config, scored, classified):
  model = manifests.read_manifest(
    f'{classified}/classifiers/quality/model', 'x'
  )
  assert model['num_good'] == model['num_bad'] == 60
  assert model['num_heldout'] == 12
  assert model['auc'] > 0.9 < model['accuracy'] + 0.1
  store = TokenStore.open(scored)
  words = Vocabulary.load(f'{scored}/vocabulary')
  section = config.classifiers['quality']
  texts = example_texts.read('quality', section, store, words, 1)
  assert texts.is_heldout.sum() == 12
  assert texts.is_heldout[texts.is_good].sum() == 6


def test_sources_of_the_corpus_are_examples(scored, config):
  """Texts that are not scored, of the sources that are named."""
  store = TokenStore.open(scored)
  words = Vocabulary.load(f'{scored}/vocabulary')
  section = dataclasses.replace(
    config.classifiers['quality'],
    good=(),
    bad=(),
    good_sources=('code',),
    bad_sources=('w*', 'books'),
  )
  texts = example_texts.read('quality', section, store, words, 1)
  found = {'good': set(), 'bad': set()}
  for number in range(store.num_shards):
    shard = store.shard(number)
    source = shard.table('source')['source'].to_pylist()
    for document in shard.documents_of('reference'):
      label = 'good' if source[document] == 'code' else 'bad'
      found[label].add(tuple(store.document(number, int(document)).tolist()))
  ends = np.cumsum(texts.texts.num_tokens)[:-1]
  parts = np.split(texts.texts.tokens, ends)
  for label, wanted in (('good', texts.is_good), ('bad', ~texts.is_good)):
    here = {tuple(p.tolist()) for p, w in zip(parts, wanted, strict=True) if w}
    assert here == found[label]
  fewer = dataclasses.replace(section, max_texts=20)
  drawn = example_texts.read('quality', fewer, store, words, 1)
  assert drawn.is_good.sum() <= 20 == (~drawn.is_good).sum()


def with_fields(edits: ConfigDict, **fields) -> config_lib.Config:
  made = edits.copy_and_resolve_references()
  for name, value in fields.items():
    with made.classifiers.quality.ignore_type():
      made.classifiers.quality[name] = value
  return config_lib.from_mapping(made)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(good=()), 'classifiers.quality: there are no good texts'),
    (dict(good=base.tfds('x')), "good: the format must be one of 'text'"),
    (dict(bad=base.jsonl('GOOD')), 'good.jsonl is a file of both good and bad'),
    (dict(bad=base.jsonl('COPY')), '0 distinct texts are good alone'),
    (dict(bad=base.jsonl('NO_TEXT')), r'no_text.jsonl:1: no such column'),
    (dict(bad=base.jsonl('NOTHING')), '0 distinct texts are bad, but a'),
    (dict(bad=base.jsonl('FEW')), '9 distinct texts are bad, but a'),
    (dict(bad=base.jsonl('absent')), 'quality.bad.0.paths: no file matches'),
    (dict(bad_sources=('wiki',)), "'wiki' matches no source of the corpus"),
    (
      dict(good_sources=('w*',), bad_sources=('web',)),
      "'web' is in both good_sources and bad_sources",
    ),
  ],
)
def test_bad_texts_are_refused(edits, scored, tmp_path, fields, message):
  given = edits.classifiers.quality.good.paths[0]
  places = {'GOOD': given, 'absent': str(tmp_path / 'absent')}
  for name in ('COPY', 'NO_TEXT', 'NOTHING', 'FEW'):
    places[name] = str(tmp_path / f'{name.lower()}.jsonl')
  shutil.copy(given, places['COPY'])
  pathlib.Path(places['NO_TEXT']).write_text('{"title": "x"}\n')
  pathlib.Path(places['NOTHING']).write_text('\n')
  write_texts(pathlib.Path(places['FEW']), 0.5, count=9)
  if 'bad' in fields:
    [path] = fields['bad'].paths
    fields = {'bad': base.jsonl(places[path])}
  with pytest.raises(UserError, match=message):
    made = with_fields(edits, **fields)
    classify.check(made)
    classify.run(made, scored)
  assert not pathlib.Path(scored, 'classifiers/quality/begun.json').exists()


def test_an_unknown_classifier_is_refused_before_work(config):
  arms = {
    'q': (
      dataclasses.replace(
        config.select.arms['quality_30'][0], score='classifier_qualty'
      ),
    )
  }
  changed = dataclasses.replace(
    config,
    select=dataclasses.replace(config.select, arms=arms),
    report=dataclasses.replace(config.report, baseline='q'),
  )
  with pytest.raises(
    UserError, match='classifier_qualty(.|\n)*classifier_quality'
  ):
    stages.check(changed, 'select')
  with pytest.raises(UserError, match="'Good' names a column"):
    dataclasses.replace(
      config, classifiers={'Good': config.classifiers['quality']}
    )
