"""Every file of a finished workdir, damaged in turn: found, and named.

A damaged file stops the stage that reads it with one message that says what to
delete; doing so and running the stage again gives the same bytes.
"""

import hashlib
import json
import os
import pathlib
import random
import re
import shutil
from collections.abc import Callable

import pytest
from small_corpus import only_arms, small_config

from configs import base
from infoprune_jax import stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import checkpoints
from infoprune_jax.tokens.token_store import UNIGRAMS

# What no stage of ours believes: logs, and what Orbax adds while it gives a
# checkpoint its name.
UNREAD = re.compile(
  r'tensorboard/|timing\.jsonl|\.lock$|commit_success\.txt$|'
  r'_CHECKPOINT_METADATA$'
)
# What is made anew by the stage that would read it.
PAGE = re.compile(r'^selection_report/(index\.html|figures/|tables/)')
REMADE = re.compile(
  rf'^report/|{PAGE.pattern}|^evaluate/.*\.done$|/generation-0\.json$'
)
# What training, when it goes on, does without.
RESUMED = re.compile(r'/checkpoints/(?!12/)|/checkpoints/12/rest')
REPAIR = re.compile(r'Delete (.+?) and run --job=(\w+)( or \S+)? again')
SCORES = ('scores/manifest.json', 'scores/*.done')
TABLES = ('scores', 'statistics', 'near_duplicates', 'duplicated_text')
SCRATCH = (
  'near_duplicates/signatures',
  *(f'duplicated_text/{x}' for x in ('hashes', 'marks')),
)
STATISTICS = ('statistics/manifest.json', 'statistics/*.done')
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
  'a bit': lambda data, rng: flipped(data, rng.randrange(8 * len(data))),
  'cut': lambda data, rng: data[: rng.randrange(len(data))],
}


def flipped(data: bytes, bit: int) -> bytes:
  damaged = bytearray(data)
  damaged[bit // 8] ^= 1 << bit % 8
  return bytes(damaged)


def reader(name: str) -> tuple[str, tuple[str, ...]]:
  """The stage that reads a file, and what to delete for it to have to."""
  stage = name.partition('/')[0]
  folder, file = name.rsplit('/', 1)
  own = f'{folder}/manifest.json'
  if file in ('begun.json', 'generation-0.json') or file.endswith('.done'):
    job = {
      'token_store': 'tokenize',
      'scores': 'score',
      'keep_sets': 'select',
      'heldout_copies': 'near_duplicates',
    }
    return job.get(stage, stage), (own,)
  if stage == 'vocabulary' or file == 'summary.json' or PAGE.search(name):
    return 'selection_report', ()
  if stage in ('selection_report', 'evaluate', 'report', 'heldout_copies'):
    return 'report', ()
  if stage == 'token_store':
    return (
      ('statistics', STATISTICS) if UNIGRAMS in folder else ('score', SCORES)
    )
  if stage in TABLES:
    return 'select', ()
  if stage == 'keep_sets':
    return 'train', ()
  run = name.split('/checkpoints/')[0]
  if '/checkpoints/' not in name:
    if file == 'metrics.jsonl':
      return ('report', ()) if stage == 'train' else ('reference', (own,))
    return ('evaluate', ()) if stage == 'train' else ('score', SCORES)
  step, item = name.split('/checkpoints/')[1].split('/')[:2]
  if step != '12':  # Read when the newer one is gone.
    return stage, (f'{run}/manifest.json', f'{run}/checkpoints/12')
  if item == 'rest':
    return stage, (f'{run}/manifest.json',)
  if stage == 'reference':
    return 'score', SCORES
  evaluation = run.replace('train/', 'evaluate/')
  return 'evaluate', (f'{evaluation}/manifest.json',)


def digests(workdir: pathlib.Path) -> dict[str, str]:
  """The checksum of every file whose bytes are promised."""
  return {
    str(path.relative_to(workdir)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in workdir.rglob('*')
    if path.is_file()
    and not UNREAD.search(str(path))
    and 'checkpoints' not in path.parts  # Times and random names in them.
  }


def run(config: Config, workdir: pathlib.Path, job: str) -> None:
  stages.STAGES[job].run(config, str(workdir))


@pytest.fixture(scope='module')
def config(corpus_path) -> Config:
  edits = small_config(corpus_path)
  edits.train.seeds = (0,)
  only_arms(edits, 'random')
  edits.select.arms.top_nll = (
    base.arm('distinct', 'near_duplicate_group'),
    base.arm('top', base.INFORMATION, fraction=0.5),
  )
  edits.report.bootstrap_samples = 20
  return config_lib.from_mapping(edits)


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory) -> pathlib.Path:
  workdir = tmp_path_factory.mktemp('finished') / 'work'
  for job in stages.IN_ORDER:
    run(config, workdir, job)
  return workdir


@pytest.fixture
def copied(finished) -> pathlib.Path:
  """The finished workdir again, of the same name: the report shows it."""
  workdir = finished.parent / 'copies' / 'work'
  shutil.rmtree(workdir, ignore_errors=True)
  restore(finished, workdir)
  return workdir


def restore(finished: pathlib.Path, workdir: pathlib.Path) -> None:
  """Links what is missing or another file: no stage writes through a link."""
  for attempt in workdir.rglob('.attempt'):  # A job that is refused leaves it.
    attempt.unlink()
  for name in names(finished):
    here = workdir / name
    if UNREAD.search(name) and 'checkpoints' not in name:
      continue
    if not (here.exists() and here.samefile(finished / name)):
      here.parent.mkdir(parents=True, exist_ok=True)
      here.unlink(missing_ok=True)
      os.link(finished / name, here)


def damage(path: pathlib.Path, kind: str, rng: random.Random) -> None:
  data = path.read_bytes()
  path.unlink()  # It may be a link.
  path.write_bytes(DAMAGES[kind](data, rng))


def delete(workdir: pathlib.Path, *patterns: str) -> None:
  for pattern in patterns:
    for path in workdir.glob(pattern):
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def names(workdir: pathlib.Path) -> list[str]:
  return sorted(
    str(path.relative_to(workdir))
    for path in workdir.rglob('*')
    if path.is_file()
  )


@pytest.mark.parametrize('kind', DAMAGES)
def test_no_damage_goes_unseen(config, finished, copied, kind):
  rng = random.Random(0)
  found, tried = 0, set()
  for name in names(finished):
    if UNREAD.search(name) or not (finished / name).stat().st_size:
      continue
    folder = name.rpartition('/')[0]
    if folder in tried and folder.endswith(('/figures', '/tables')):
      continue  # All are written alike.
    tried.add(folder)
    if 'random' in name:  # As the other arm's.
      continue
    restore(finished, copied)
    job, undone = reader(name)
    delete(copied, *undone)
    damage(copied / name, kind, rng)
    if RESUMED.search(name):  # Found, and put aside, before it is read.
      folder, step = name.split('/checkpoints/')
      step = int(step.split('/')[0])
      sound, _ = checkpoints.newest_sound(
        str(copied / folder), ('params', 'rest'), job
      )
      assert sound < step, name
      aside = copied / folder / 'checkpoints' / f'damaged-{step}'
      assert aside.exists()
      shutil.rmtree(aside)
      found += 1
      continue
    if REMADE.search(name):
      run(config, copied, job)
      assert digests(copied) == digests(finished), name
      continue
    with pytest.raises(UserError) as caught:
      run(config, copied, job)
    message = str(caught.value)
    folder, file = name.rsplit('/', 1)
    assert f'{copied}/{folder}' in message and file in message, (name, message)
    assert REPAIR.search(message), (name, message)
    delete(copied, *SCRATCH)  # Kept to go on with.
    found += 1
  assert found > 60


def follow(message: str, config: Config, workdir: pathlib.Path) -> None:
  """Does what a message says."""
  found = REPAIR.search(message)
  for word in found[1].split(' and '):
    assert word.startswith(f'{workdir}/'), message
    delete(workdir, str(pathlib.Path(word).relative_to(workdir)))
  run(config, workdir, found[2])


@pytest.mark.parametrize(
  'name',
  [
    'vocabulary/sentencepiece.model',
    'vocabulary/manifest.json',
    'token_store/tokens/part-00001-of-00003.npy',
    'token_store/part-00001-of-00003.done',
    'token_store/manifest.json',
    'reference/begun.json',
    'reference/checkpoints/12/checksums.json',
    'scores/data/part-00002-of-00003.parquet',
    'keep_sets/top_nll/keep.npy',
    'keep_sets/top_nll/summary.json',
    'train/top_nll/seed-0/manifest.json',
    'evaluate/top_nll/seed-0/data/part-00000-of-00003.parquet',
  ],
)
def test_what_the_message_says_mends_it(config, finished, copied, name):
  job, undone = reader(name)
  delete(copied, *undone)
  damage(copied / name, 'cut', random.Random(1))
  with pytest.raises(UserError) as caught:
    run(config, copied, job)
  untouched = set(names(copied)) & set(names(finished))
  inodes = {shard: (copied / shard).stat().st_ino for shard in untouched}
  follow(str(caught.value), config, copied)
  run(config, copied, job)
  assert digests(copied) == digests(finished)
  # Sound shards are kept.
  artifact, own = name.partition('/')[0], pathlib.Path(name).stem
  shards = [p for p in untouched if re.match(f'{artifact}/(\\w+/)?part-', p)]
  for shard in shards if artifact in ('token_store', 'scores') else ():
    if f'/{own}.' not in shard:
      assert (copied / shard).stat().st_ino == inodes[shard], shard


def test_a_lost_curve_does_not_cost_the_run(config, finished, copied):
  path = copied / 'train/top_nll/seed-0/metrics.jsonl'
  damage(path, 'a bit', random.Random(2))
  with pytest.raises(UserError, match=r'metrics\.jsonl is damaged') as caught:
    run(config, copied, 'report')
  follow(str(caught.value), config, copied)
  run(config, copied, 'report')
  assert not path.read_bytes()
  manifest = 'train/top_nll/seed-0/manifest.json'
  params = [
    json.loads((workdir / manifest).read_text())['params_hash']
    for workdir in (copied, finished)
  ]
  assert params[0] == params[1]


@pytest.mark.parametrize(
  'name',
  [
    'vocabulary/sentencepiece.model',
    'token_store/unigrams/part-00001-of-00003.npy',
    'reference/checkpoints/12/checksums.json',
    'scores/data/part-00002-of-00003.parquet',
    'keep_sets/top_nll/keep.npy',
    'keep_sets/top_nll/manifest.json',
    'train/top_nll/seed-0/metrics.jsonl',
    'evaluate/top_nll/seed-0/data/part-00000-of-00003.parquet',
  ],
)
def test_a_missing_file_is_named(config, copied, name):
  job, undone = reader(name)
  delete(copied, name, *undone)
  folder = name.rsplit('/', 1)[0]
  with pytest.raises(UserError, match='is missing|is not there') as caught:
    run(config, copied, job)
  assert f'{copied}/{folder}' in str(caught.value)
