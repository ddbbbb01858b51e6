"""SeqIO tasks over a token store: the same examples as the other reader."""

import collections
import os
import re
import shutil

import numpy as np
import pytest
import seqio
import tensorflow as tf

from configs import base
from infoprune_jax.batches import loader
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import (
  keep_set_dir,
  token_store_dir,
  vocabulary_dir,
)
from infoprune_jax.selection import keep_set
from infoprune_jax.seqio_tasks import seqio_reader, tasks, token_store_source
from infoprune_jax.seqio_tasks.seqio_vocabulary import SeqIOVocabulary
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.token_store import TokenStore

ARM = 'half'
BATCH, ROW = 4, 128


@pytest.fixture(scope='module')
def workdir(store_workdir, tmp_path_factory) -> str:
  """A token store, and a keep set of every other scored document."""
  path = str(tmp_path_factory.mktemp('seqio') / 'lr[3e-4]*?::1' / 'made-up')
  shutil.copytree(store_workdir, path)
  store = TokenStore.open(path)
  kept = np.concatenate(
    [shard.column('split') == 1 for shard in shards_of(store)]
  ) & (np.arange(sum(store.documents_per_shard)) % 2 == 0)
  artifact = artifacts.Artifact(
    keep_set_dir(path, ARM),
    'keep set',
    'select',
    {},
    {'token_store': store.fingerprint},
  )
  keep_set.write(artifact, kept)
  return path


@pytest.fixture(scope='module')
def store(workdir) -> TokenStore:
  return TokenStore.open(workdir)


@pytest.fixture(scope='module')
def names(workdir) -> list[str]:
  return tasks.register(workdir)


def shards_of(store):
  return [store.shard(number) for number in range(store.num_shards)]


def kept_rows(workdir, store) -> list[np.ndarray]:
  kept = keep_set.KeepSet.open(workdir, ARM, store)
  return [kept.doc_indices(shard) for shard in range(store.num_shards)]


def expected(store, rows) -> collections.Counter:
  """The documents of the given rows, with EOS, as the store has them."""
  return collections.Counter(
    (*store.document(shard, int(row)).tolist(), store.eos_id)
    for shard, chosen in enumerate(rows)
    for row in chosen
  )


def read(name, split='train', **options) -> list[tuple[int, ...]]:
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    None, split=split, **{'shuffle': False, **options}
  )
  return [tuple(e['targets'].tolist()) for e in dataset.as_numpy_iterator()]


def test_names(names):
  assert names == [
    'made_up',
    'made_up.mixture',
    'made_up.half',
    'made_up.half.mixture',
  ]
  sources = {'copies', 'prose', 'template'}
  assert {f'made_up.half.{s}' for s in sources} <= set(
    seqio.TaskRegistry.names()
  )


def test_an_arm_is_what_its_keep_set_keeps(names, workdir, store):
  found = collections.Counter(read('made_up.half'))
  assert found == expected(store, kept_rows(workdir, store))
  assert len(found) < len(set(read('made_up')))


def test_splits(names, store):
  for split, inside in token_store_source.SPLITS.items():
    rows = [
      np.concatenate([shard.documents_of(name) for name in inside])
      for shard in shards_of(store)
    ]
    assert collections.Counter(read('made_up', split)) == expected(store, rows)


def test_pruning_leaves_the_validation_split(names):
  whole = read('made_up', 'validation')
  assert whole and read('made_up.half', 'validation') == whole


def test_both_readers_read_the_same_examples(names, workdir, store):
  """Over an epoch: the same tokens, first inputs (BOS) and targets."""
  rows = kept_rows(workdir, store)
  grain = loader.grain_reader(store, rows, training(batch_size=1), seed=0)
  one = documents(grain.batches(0, len(grain.sequences), np.arange(1)), store)
  dataset = seqio.get_mixture_or_task('made_up.half').get_dataset(
    {'targets': ROW}, split='train', shuffle=True, seed=3
  )
  converter = seqio.LMFeatureConverter(pack=True, bos_id=store.bos_id)
  rows = converter(dataset, {'targets': ROW}).batch(1).as_numpy_iterator()
  other = documents(rows, store)
  # SeqIO cuts what is longer than a row; ours goes on in the next window.
  short = {ids for ids in one if ids[-1] == store.eos_id and len(ids) < ROW}
  assert short == {ids for ids in other if len(ids) < ROW} and len(short) > 15


def documents(batches, store) -> set[tuple[int, ...]]:
  """The targets of each segment that starts with BOS as its input."""
  found = set()
  for batch in batches:
    segments = batch['decoder_segment_ids'][0]
    for segment in range(1, segments.max() + 1):
      here = segments == segment
      if batch['decoder_input_tokens'][0][here][0] == store.bos_id:
        found.add(tuple(batch['decoder_target_tokens'][0][here].tolist()))
  return found


def test_epochs(names, workdir, store):
  twice = read('made_up.half', num_epochs=2, shuffle=True, seed=0)
  once = expected(store, kept_rows(workdir, store))
  assert collections.Counter(twice) == once + once
  half = len(twice) // 2
  assert twice[:half] != twice[half:]


@pytest.mark.parametrize('num_shards', [2, 3, 7])
def test_shards_split_the_examples(names, workdir, store, num_shards):
  """Of more SeqIO shards than the store has, each has some examples of a shard."""
  found = [
    read(
      'made_up.half', shard_info=seqio.ShardInfo(index, num_shards), **options
    )
    for index in range(num_shards)
    for options in [{'shuffle': True, 'seed': 1}]
  ]
  together = collections.Counter(ids for shard in found for ids in shard)
  assert together == expected(store, kept_rows(workdir, store))


def test_the_seed_decides_the_order(names):
  first, again, other = (
    read('made_up.half', shuffle=True, seed=seed) for seed in (0, 0, 1)
  )
  assert first == again != other
  assert sorted(first) == sorted(other)


def test_a_mixture_draws_sources_by_their_size(names, store, workdir):
  mixture = seqio.get_mixture_or_task('made_up.half.mixture')
  sizes = tasks.sizes_by_source(store, kept_rows(workdir, store))
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {
    f'made_up.half.{source}': size.documents for source, size in sizes.items()
  }


def test_keep_examples_goes_by_any_feature():
  ids = [f'c4-train.tfrecord-{n:05d}' for n in range(500)]
  dataset = tf.data.Dataset.from_tensor_slices({'tfds_id': ids})
  keep = tasks.keep_examples(ids[::7], 'tfds_id')
  for kept in (keep(dataset), keep(dataset.batch(64)).unbatch()):
    found = [e['tfds_id'].decode() for e in kept.as_numpy_iterator()]
    assert found == ids[::7]


def test_examples_are_repeated(workdir, store):
  """As often as by the other reader; no pass has two copies of an example."""
  rows = [np.repeat(chosen, chosen % 4) for chosen in kept_rows(workdir, store)]
  words = vocabulary.Vocabulary.load(vocabulary_dir(workdir))
  keep = tasks.keep_documents(store, rows)
  task = tasks.Corpus(store, words).task('repeated', keep)
  read, held = (
    [
      tuple(example['targets'].tolist())
      for example in task.get_dataset(
        None, split=split, shuffle=False
      ).as_numpy_iterator()
    ]
    for split in ('train', 'validation')
  )
  assert collections.Counter(read) == expected(store, rows)
  heldout = [shard.documents_of('heldout') for shard in shards_of(store)]
  assert collections.Counter(held) == expected(store, heldout)
  sizes = tasks.sizes_by_source(store, rows)
  assert sum(size.documents for size in sizes.values()) == len(read)
  three = next(r for r, n in collections.Counter(read).items() if n == 3)
  gaps = np.diff([n for n, ids in enumerate(read) if ids == three])
  assert gaps.min() > len(read) / 8


def test_the_vocabulary_is_ours(workdir):
  words = vocabulary.Vocabulary.load(vocabulary_dir(workdir))
  wrapped = SeqIOVocabulary(words)
  text = 'Item 3: the naïve thing\n is in stock'
  ids = words.encode(text).tolist()
  assert list(wrapped.encode(text)) == ids
  assert wrapped.encode_tf(tf.constant(text)).numpy().tolist() == ids
  assert wrapped.decode(ids) == text
  assert wrapped.decode_tf(tf.constant(ids)).numpy().decode() == text
  assert (wrapped.bos_id, wrapped.eos_id) == (words.bos_id, words.eos_id)
  assert wrapped.vocab_size == words.size
  assert wrapped == SeqIOVocabulary(words)


def test_a_name_that_is_taken_is_refused(names, workdir, store, tmp_path):
  other = str(tmp_path / 'made-up')
  shutil.copytree(workdir, other)
  shutil.rmtree(f'{other}/keep_sets')
  manifest = store.manifest
  artifacts.Artifact(
    token_store_dir(other), 'token store', 'tokenize', {'n': 1}, {}
  ).finish(
    manifest['files'],
    **{
      name: manifest[name]
      for name in (
        'num_shards',
        'documents_per_shard',
        'vocab_size',
        'bos_id',
        'eos_id',
      )
    },
  )
  with pytest.raises(UserError, match='made_up is registered already'):
    tasks.register(other)
  assert tasks.register(other, 'other')[0] == 'other'
  assert tasks.register(workdir) == names  # Again is no harm.


def test_without_a_store(tmp_path):
  with pytest.raises(UserError, match='--job=tokenize'):
    tasks.register(str(tmp_path))


# The reader that trains.


def training(**fields) -> TrainingConfig:
  sizes = {'sequence_length': ROW, 'batch_size': BATCH}
  return TrainingConfig(num_steps=1, learning_rate=1e-3, **(sizes | fields))


def make_reader(workdir, store, **fields) -> seqio_reader.SeqIOReader:
  return seqio_reader.seqio_reader(
    'train half',
    store,
    workdir,
    kept_rows(workdir, store),
    training(**fields),
    seed=0,
  )


def test_training_reads_what_is_kept(workdir, store, monkeypatch):
  rows = kept_rows(workdir, store)
  monkeypatch.setattr(seqio_reader, 'PACKED_TOGETHER', 20)
  reader = make_reader(workdir, store, batch_size=1)
  # SeqIO shuffles across epochs: some come twice before the last comes once.
  seen = documents(reader.batches(0, 300, np.arange(1)), store)
  short = {ids for ids in expected(store, rows) if len(ids) <= ROW}
  assert {ids for ids in seen if ids[-1] == store.eos_id} == short


def test_resuming_gives_the_same_batches(workdir, store):
  feeds = np.arange(BATCH)
  whole = list(make_reader(workdir, store).batches(0, 12, feeds))
  rest = list(make_reader(workdir, store).batches(7, 12, feeds))
  assert len(rest) == 5
  for one, other in zip(whole[7:], rest, strict=True):
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_facts(workdir, store):
  reader = make_reader(workdir, store)
  list(reader.batches(0, 12, np.arange(BATCH)))
  facts = reader.facts(12)
  assert 0.8 < facts['fill'] <= 1.0
  assert facts['epochs'] == pytest.approx(
    12 * BATCH / facts['num_sequences'], 0.02
  )


def test_a_weighted_mixture(workdir, store, monkeypatch):
  monkeypatch.setattr(seqio_reader, 'PACKED_TOGETHER', 200)
  weights = {'prose': 1.0, 'template': 6.0, 'copies': 1.0}
  reader = make_reader(workdir, store, mixture=weights, sequence_length=1024)
  tokens = collections.Counter()
  source = source_of(store)
  for batch in reader.batches(0, 40, np.arange(BATCH)):
    for row, segments in zip(
      batch['decoder_target_tokens'], batch['decoder_segment_ids'], strict=True
    ):
      for segment in range(1, segments.max() + 1):
        ids = tuple(row[segments == segment].tolist())
        tokens[source.get(ids, 'cut')] += len(ids)
  assert tokens['cut'] < 0.05 * tokens.total()
  relative = tokens['template'] / tokens['prose']
  assert relative == pytest.approx(6.0, rel=0.3)


def source_of(store) -> dict[tuple[int, ...], str]:
  return {
    (*store.document(number, row).tolist(), store.eos_id): name
    for number, shard in enumerate(shards_of(store))
    for row, name in enumerate(shard.table('source')['source'].to_pylist())
  }


def test_more_hosts_than_shards(workdir, store, monkeypatch):
  monkeypatch.setattr(seqio_reader.jax, 'process_count', lambda: 8)
  with pytest.raises(UserError, match='3 shards are too few for 8 hosts'):
    make_reader(workdir, store)


def test_hosts_with_the_same_rows(workdir, store, monkeypatch):
  reader = make_reader(workdir, store)
  monkeypatch.setattr(seqio_reader.jax, 'process_count', lambda: 2)
  with pytest.raises(
    UserError, match='with this mesh several hosts feed the same'
  ):
    next(reader.batches(0, 1, np.arange(BATCH)))


def test_the_stream_does_not_know_its_examples(workdir, store):
  assert make_reader(workdir, store).examples(3) == []


def test_the_script_of_the_docs(workdir, capsys, monkeypatch):
  """Fifteen lines at most, run as they stand, over another workdir."""
  page = base.__file__.replace('configs/base.py', 'docs/seqio.md')
  with open(page, encoding='utf-8') as file:
    [script] = re.findall(
      r'```python\n(import seqio\n.*?)```', file.read(), re.S
    )
  assert len(script.splitlines()) <= 15
  monkeypatch.chdir(os.path.dirname(workdir))
  script = script.replace('runs/demo', 'made-up').replace('demo.', 'made_up.')
  script = script.replace('top_nll', ARM)
  exec(script, {})
  assert capsys.readouterr().out.count('decoder_target_tokens') == 2
