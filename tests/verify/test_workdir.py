"""Everything in a workdir, made wrong once: seen, and named."""

import io
import os
import pathlib
import random
import re
import shutil

import numpy as np
import pytest
from changed_artifacts import (
  PART as SCORES,
  remake_manifest,
  reseal,
  wrong,
)

from infoprune_jax import stages
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints, deletions
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.selection import keep_set
from infoprune_jax.verify import workdir as verify


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
