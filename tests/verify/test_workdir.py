"""Everything in a workdir, made wrong once: seen, and named."""

import dataclasses
import io
import os
import pathlib
import random
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from changed_artifacts import (
  PART as SCORES,
  remake_manifest,
  reseal,
  rewrite,
  with_value,
)
from small_corpus import only_arms, small_config

from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints, deletions
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.selection import keep_set
from infoprune_jax.verify import workdir as verify


@pytest.fixture(scope='module')
def config(corpus_path):
  edits = small_config(corpus_path)
  edits.train.seeds = (0,)
  only_arms(edits, 'random', 'top_nll')
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> pathlib.Path:
  # A name that globs, fsspec and DuckDB would take for a pattern.
  workdir = tmp_path_factory.mktemp('finished') / 'lr[3e-4]*?::1'
  for job in ('tokenize', 'statistics', 'reference', 'score', 'select'):
    stages.STAGES[job].run(config, str(workdir))
  one = dataclasses.replace(config.train, arms=('top_nll',))
  for job in ('train', 'evaluate'):
    stages.STAGES[job].run(dataclasses.replace(config, train=one), str(workdir))
  for job in ('selection_report', 'report'):
    page = files.write_text(str(workdir / job / 'index.html'), '<p>' * 9)
    [planned] = stages.STAGES[job].artifacts(config, str(workdir))
    inputs = {
      name: manifest['fingerprint']
      for name, path in planned.made_from.items()
      if (manifest := manifests.read_manifest(path, job))
    }
    made = dataclasses.replace(planned.artifact, inputs=inputs)
    made.finish({'index.html': page})
  return workdir


@pytest.fixture
def copied(finished, tmp_path) -> pathlib.Path:
  return shutil.copytree(finished, tmp_path / finished.name)


def wrong(workdir: pathlib.Path) -> dict[str, str]:
  """What is wrong, by artifact."""
  return {
    os.path.relpath(found.path, workdir): '\n'.join(problems)
    for found, problems in verify.check(str(workdir))
    if problems
  }


def test_a_finished_workdir_is_right(finished, config, capsys):
  stages.run(config, str(finished), 'verify')
  lines = capsys.readouterr().out.splitlines()
  assert all(line.startswith('ok') for line in lines), lines
  names = [line.split()[1].rstrip(':') for line in lines]
  assert names == [
    'vocabulary',
    'token_store',
    'statistics',
    'reference',
    'scores',
    'keep_sets/random-seed-0',
    'keep_sets/top_nll',
    'selection_report',
    'train/top_nll/seed-0',
    'evaluate/top_nll/seed-0',
    'report',
  ]


def test_it_changes_nothing(finished):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob('*')}
  list(verify.check(str(finished)))
  assert {p: p.stat().st_mtime_ns for p in finished.rglob('*')} == before


def test_what_is_wrong_ends_the_job(copied, config, capsys):
  os.remove(copied / 'scores' / SCORES)
  with pytest.raises(UserError, match='1 of 11 artifacts in .* are wrong'):
    stages.run(config, str(copied), 'verify')
  out = capsys.readouterr().out
  assert 'WRONG  scores' in out
  assert f'{SCORES} is missing' in out and '--job=score again' in out


def test_an_empty_workdir_is_refused(tmp_path, config):
  with pytest.raises(UserError, match='no artifact'):
    stages.run(config, str(tmp_path), 'verify')


@pytest.mark.parametrize(
  ('pattern', 'artifact'),
  [
    ('vocabulary/*.model', 'vocabulary'),
    ('token_store/tokens/*.npy', 'token_store'),
    ('token_store/data/*.parquet', 'token_store'),
    ('token_store/manifest.json', 'token_store'),
    ('reference/metrics.jsonl', 'reference'),
    ('reference/checkpoints/12/params/manifest.ocdbt', 'reference'),
    ('reference/checkpoints/12/checksums.json', 'reference'),
    ('scores/data/*.parquet', 'scores'),
    ('scores/*.done', 'scores'),
    ('scores/begun.json', 'scores'),
    ('keep_sets/top_nll/keep.npy', 'keep_sets/top_nll'),
    ('keep_sets/top_nll/summary.json', 'keep_sets/top_nll'),
    ('train/top_nll/seed-0/manifest.json', 'train/top_nll/seed-0'),
    ('evaluate/top_nll/seed-0/data/*.parquet', 'evaluate/top_nll/seed-0'),
    ('selection_report/index.html', 'selection_report'),
    ('report/index.html', 'report'),
  ],
)
def test_a_flipped_bit_is_named(copied, pattern, artifact):
  [*_, path] = sorted(copied.glob(pattern))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  found = wrong(copied)
  assert list(found) == [artifact]
  assert path.name in found[artifact] or str(path.parent) in found[artifact]
  assert 'Delete' in found[artifact] and '--job=' in found[artifact]


def test_the_rest_of_a_deletion_is_no_damage(copied, config, capsys):
  """Whichever files are gone; the next start deletes what is left."""
  run = copied / 'reference'
  old = run / 'checkpoints/10'
  rng = random.Random(0)
  deletions.mark(str(run / 'checkpoints'), '10')
  paths = [path for path in old.rglob('*') if path.is_file()]
  rng.shuffle(paths)
  for path in [None, *paths]:
    if path:
      path.unlink()
    assert not wrong(copied)
  shutil.rmtree(old)
  assert not wrong(copied)
  old.mkdir()
  stages.run(config, str(copied), 'verify')
  out = capsys.readouterr().out
  assert 'leftovers: 1 incomplete, deleted at the next start' in out
  stages.STAGES['reference'].run(config, str(copied))  # It is finished.
  assert sorted(os.listdir(run / 'checkpoints')) == ['12']
  stages.run(config, str(copied), 'verify')
  assert 'leftovers' not in capsys.readouterr().out


def test_an_older_checkpoint_is_damaged_alone(copied):
  """What the message says to delete is all that it takes."""
  (copied / 'reference/checkpoints/10' / checkpoints.RECORD).unlink()
  [message] = wrong(copied).values()
  [name] = re.findall(r'Delete (\S+) and run --job=verify again', message)
  shutil.rmtree(name)
  assert not wrong(copied)


@pytest.mark.parametrize('damaged', [b'', b'{}'])
def test_a_damaged_note_is_enough_to_delete(copied, config, damaged):
  for name in ('scores', 'reference'):
    path = copied / name / manifests.BEGUN
    path.write_bytes(damaged)
    [message] = wrong(copied).values()
    assert f'Delete {path} and run --job=' in message
    if name == 'reference':  # A run may go on from where it is finished.
      with pytest.raises(UserError, match=re.escape(f'Delete {path} and run')):
        artifacts.Artifact(str(path.parent), 'run', name, {}, {}).begin()
    path.unlink()
    assert not wrong(copied)


def test_the_note_of_what_is_not_finished_is_needed(copied):
  """Without it, shards of another config could be taken for ours."""
  (copied / 'scores' / manifests.MANIFEST).unlink()
  (copied / 'scores' / manifests.BEGUN).write_text('{}')
  [message] = wrong(copied).values()
  assert f'Delete {copied / "scores"} and run --job=score again' in message


@pytest.mark.parametrize(
  ('change', 'expected'),
  [
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
    (lambda t: pa.concat_tables([t, t.slice(0, 1)]), '1 twice'),
    (lambda t: t.take([*range(1, t.num_rows), 0]), 'out of order'),
    (with_value('doc_index', -1, 10**6), '1 that should not be there'),
    (with_value('shard', 0, 2), 'column shard is not 1'),
    (with_value('num_tokens', 2, 999_999), 'is 999999, expected'),
    (with_value('num_bytes', 2, 999_999), 'num_bytes of doc_index'),
    (with_value('example_id', 2, 'another'), "is 'another', expected 'doc-"),
    (with_value('source', 2, 'another'), 'source of doc_index'),
    (with_value('content_hash', 2, 5), 'content_hash of doc_index'),
    (with_value('fold', 2, 1), 'is 1, expected 0'),
    (with_value('nll_sum', 2, float('nan')), 'is nan, and 1 in all'),
    (with_value('nll_sum', 2, -1.0), 'is -1.0, and 1 in all'),
    (lambda t: t.drop(['fold']), 'has the columns'),
  ],
)
def test_a_wrong_score_is_named(copied, change, expected):
  rewrite(copied / 'scores', change)
  found = wrong(copied)
  assert expected in found['scores']
  assert SCORES in found['scores']
  assert 'run --job=score again: only that shard is made' in found['scores']
  # What was made from another table says so.
  assert 'was made from scores' in found['keep_sets/top_nll']


@pytest.mark.parametrize(
  'change, expected',
  [
    (with_value('compressed_bytes', 2, 0), 'compressed_bytes of doc_index'),
    (with_value('unigram_nll_sum', 2, float('inf')), 'is inf, and 1'),
    (with_value('unigram_frequency_square_sum', 2, -1.0), 'is -1.0, and 1'),
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
  ],
)
def test_a_wrong_statistic_is_named(copied, change, expected):
  rewrite(copied / 'statistics', change)
  found = wrong(copied)
  assert expected in found['statistics']
  assert 'run --job=statistics again: only that' in found['statistics']
  assert 'was made from statistics' in found['keep_sets/top_nll']


@pytest.mark.parametrize(
  'change, expected',
  [
    (with_value('near_duplicate_group', 2, -1), 'is -1, and 1 in all'),
    (with_value('shard', 0, 2), 'column shard is not 1'),
    (lambda t: t.slice(1), '1 missing (the first is doc_index'),
    (lambda t: t.drop(['near_duplicates']), 'has the columns'),
  ],
)
def test_a_wrong_group_is_named(copied, config, change, expected):
  stages.run(config, str(copied), 'near_duplicates')
  assert not wrong(copied)
  rewrite(copied / 'near_duplicates', change)
  found = wrong(copied)
  assert expected in found['near_duplicates']
  assert 'run --job=near_duplicates again: only' in found['near_duplicates']


def test_what_it_says_mends(copied, finished, config):
  """Delete what is named, run what is named: only that shard is made."""
  rewrite(copied / 'scores', with_value('nll_sum', 2, -1.0))
  other = copied / 'scores' / SCORES.replace('00001', '00000', 1)
  before = other.stat().st_mtime_ns
  said = wrong(copied)['scores']
  found = re.search(r'Delete (\S+) and (\S+) and run --job=(\w+) again', said)
  for path in found.groups()[:2]:
    os.remove(path)
  stages.run(config, str(copied), found[3])
  assert not wrong(copied)
  assert other.stat().st_mtime_ns == before
  # A manifest alone is written again from what the shards say of themselves.
  os.remove(copied / 'scores/manifest.json')
  stages.run(config, str(copied), 'score')
  for name in ('manifest.json', SCORES):
    path = f'scores/{name}'
    assert (copied / path).read_bytes() == (finished / path).read_bytes()


def test_wrong_totals_are_named(copied):
  remake_manifest(copied / 'scores', {}, num_tokens=7)
  assert 'its manifest says 7' in wrong(copied)['scores']


def test_wrong_losses_of_the_scored_corpus_are_named(copied):
  manifest = manifests.read_manifest(str(copied / 'scores'), 'score')
  manifest['losses']['sources']['prose']['documents'] += 1
  remake_manifest(copied / 'scores', {}, losses=manifest['losses'])
  shards, source = wrong(copied)['scores'].splitlines()
  assert 'add up to' in shards and "losses of 'prose' is {'doc" in source


def test_a_wrong_loss_is_named(copied):
  folder = copied / 'evaluate/top_nll/seed-0'
  rewrite(folder, with_value('nll_sum', 0, -3.0))
  found = wrong(copied)
  assert 'is -3.0' in found.pop('evaluate/top_nll/seed-0')
  assert not found


def kept(folder: pathlib.Path) -> np.ndarray:
  size = manifests.read_manifest(str(folder), 'select')['num_documents']
  return np.unpackbits(np.load(folder / keep_set.FILE), count=size)


def save(bits: np.ndarray) -> bytes:
  file = io.BytesIO()
  np.save(file, np.packbits(bits))
  return file.getvalue()


def test_a_keep_set_with_another_size_is_named(copied):
  folder = copied / 'keep_sets/top_nll'
  bits = kept(folder)
  bits[np.flatnonzero(bits)[0]] = 0
  reseal(folder, keep_set.FILE, save(bits))
  found = wrong(copied)
  assert 'its manifest says' in found['keep_sets/top_nll']
  assert 'was made from keep_set' in found['train/top_nll/seed-0']


def test_a_keep_set_of_what_was_not_scored_is_named(copied):
  folder = copied / 'keep_sets/top_nll'
  reseal(folder, keep_set.FILE, save(np.ones_like(kept(folder))))
  assert 'that were not scored' in wrong(copied)['keep_sets/top_nll']


def test_a_summary_of_other_scores_is_named(copied):
  path = str(copied / 'keep_sets/random-seed-0/summary.json')
  record = files.read_record(path, '')
  files.write_record(path, {**record, 'scores': 'f' * 16})
  found = wrong(copied)['keep_sets/random-seed-0']
  assert f'made with the scores {"f" * 16}' in found


def test_a_shard_of_the_store_that_does_not_add_up_is_named(copied):
  folder = copied / 'token_store'
  name = 'tokens/part-00001-of-00003.npy'
  file = io.BytesIO()
  np.save(file, np.load(folder / name)[:-3])
  reseal(folder, name, file.getvalue())
  found = wrong(copied)
  assert 'tokens, expected' in found['token_store']
  assert 'was made from token_store' in found['scores']


def test_wrong_splits_and_counts_of_the_store_are_named(copied):
  folder = copied / 'token_store'
  name = 'unigrams/part-00001-of-00003.npy'
  counts = np.load(folder / name)
  counts[counts.argmax()] += 1
  file = io.BytesIO()
  np.save(file, counts)
  reseal(folder, name, file.getvalue())
  splits = manifests.read_manifest(str(folder), 'x')['splits']
  splits['heldout']['documents'] += 1
  remake_manifest(folder, {}, splits=splits)
  found = wrong(copied)['token_store']
  assert 'in the token counts' in found and 'the heldout split has' in found


def test_a_gone_checkpoint_is_named(copied):
  shutil.rmtree(copied / 'train/top_nll/seed-0/checkpoints/12')
  found = wrong(copied)
  assert 'no checkpoint of step 12' in found.pop('train/top_nll/seed-0')
  assert not found


def test_a_wrong_fingerprint_is_named(copied):
  path = str(copied / 'report/manifest.json')
  record = files.read_record(path, '')
  files.write_record(path, {**record, 'fingerprint': 'f' * 16})
  assert f'has the fingerprint {"f" * 16}' in wrong(copied)['report']


def test_another_beginning_is_named(copied):
  path = str(copied / 'scores/begun.json')
  record = files.read_record(path, '')
  record['options']['sequence_length'] = 32
  files.write_record(path, record)
  assert 'options.sequence_length is 64, not 32' in wrong(copied)['scores']


def test_a_shard_alone_is_checked_too(copied, config, capsys):
  """As of a job that was stopped."""
  os.remove(copied / 'scores/manifest.json')
  os.remove(copied / 'scores/part-00000-of-00003.done')
  stages.run(config, str(copied), 'verify')
  assert 'begun  scores: score table, not finished, 2 files' in (
    capsys.readouterr().out
  )
  (copied / 'scores' / SCORES).write_bytes(b'')
  assert 'is damaged' in wrong(copied)['scores']
