"""Training batches: a pure function of the step."""

import dataclasses
import itertools
import time

import numpy as np
import pytest

from infoprune_jax.batches import loader
from infoprune_jax.config.training import MixturePhase, TrainingConfig
from infoprune_jax.config.validation import UserError

NUM_ROWS = 13
BATCH = 4


@pytest.fixture
def store(make_store):
  """Two shards of documents whose ids are all their own number."""
  lengths = np.random.default_rng(0).integers(3, 40, 60)
  documents = [[10 + n] * int(length) for n, length in enumerate(lengths)]
  return make_store([documents[:25], documents[25:]])


@pytest.fixture
def sequences(make_store):
  """13 sequences of one document each, which fills its sequence with its number."""
  documents = [[10 + n] * 7 for n in range(NUM_ROWS)]
  store = make_store([documents])
  return reader(store, [np.arange(NUM_ROWS)], sequence_length=8)


def reader(store, keep, sequence_length=16, **fields) -> loader.GrainReader:
  training = TrainingConfig(
    num_steps=1,
    batch_size=BATCH,
    sequence_length=sequence_length,
    learning_rate=1e-3,
    **fields,
  )
  return loader.grain_reader(store, keep, training, seed=0)


def batches(
  sequences, first_step: int, num_steps: int, seed: int = 0, feeds=range(BATCH)
) -> list:
  sequences = dataclasses.replace(sequences, seed=seed)
  return list(sequences.batches(first_step, num_steps, np.array(feeds)))


def numbers(found) -> list[int]:
  """Which sequence stands where, over all steps."""
  return [
    int(sequence[0])
    for batch in found
    for sequence in batch['decoder_target_tokens']
  ]


def same(first, second) -> bool:
  return len(first) == len(second) and all(
    np.array_equal(one[name], other[name])
    for one, other in zip(first, second, strict=True)
    for name in one
  )


@pytest.mark.parametrize('first_step', [1, 5, 12, 19])
def test_starting_late_is_skipping(sequences, first_step):
  assert same(
    batches(sequences, first_step, 20), batches(sequences, 0, 20)[first_step:]
  )


def test_no_step_left(sequences):
  assert batches(sequences, 20, 20) == []


def test_a_longer_run_starts_alike(sequences):
  assert same(batches(sequences, 0, 30)[:20], batches(sequences, 0, 20))


def test_each_epoch_holds_every_row_once_in_an_order_of_its_own(sequences):
  found = numbers(batches(sequences, 0, 13))  # Four epochs of 13 sequences.
  assert len(found) == 4 * NUM_ROWS
  epochs = [found[n * NUM_ROWS : (n + 1) * NUM_ROWS] for n in range(4)]
  assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
  assert sorted(epochs[0]) == list(range(10, 10 + NUM_ROWS))
  assert all(a != b for a, b in itertools.combinations(epochs, 2))


def test_the_seed_changes_the_order(sequences):
  assert numbers(batches(sequences, 0, 3)) != numbers(
    batches(sequences, 0, 3, seed=1)
  )


def test_shapes(sequences):
  [batch] = batches(sequences, 0, 1)
  assert {values.shape for values in batch.values()} == {(BATCH, 8)}


# Of a pod's hosts some have sequences that do not follow one another.
HOSTS = [
  [[0, 1, 2, 3]],
  [[0, 1], [2, 3]],
  [[0, 2], [1, 3]],
  [[3], [1], [0], [2]],
]


@pytest.mark.parametrize('hosts', HOSTS)
def test_hosts_share_each_batch(sequences, mixed, hosts):
  schedule = (MixturePhase(from_step=5, weights=dict.fromkeys(WEIGHTS, 1.0)),)
  blend = reader(
    mixed, [np.arange(30)] * 2, mixture=WEIGHTS, mixture_schedule=schedule
  )
  for read in (sequences, blend):
    whole = batches(read, 3, 9)
    shares = [batches(read, 3, 9, feeds=feeds) for feeds in hosts]
    order = np.argsort(np.concatenate(hosts))
    together = [
      {
        name: np.concatenate([share[name] for share in step])[order]
        for name in step[0]
      }
      for step in zip(*shares, strict=True)
    ]
    assert same(together, whole)


def test_seeking_takes_no_time(mixed):
  """The first batch, made anew, with Grain's own start."""
  step = 1_000_000
  phases = [{'web': web, 'books': 2.0, 'news': 0.5} for web in (1.0, 7.0)]
  schedule = [
    MixturePhase(from_step=10_000 * n, weights=phases[n % 2])
    for n in range(1, 90)
  ]
  sequences = reader(
    mixed, [np.arange(30)] * 2, mixture=WEIGHTS, mixture_schedule=schedule
  )
  times = []
  for _ in range(3):  # The machine may be at something else.
    start = time.monotonic()
    [found] = batches(sequences, step, step + 1)
    times.append(time.monotonic() - start)
  assert min(times) < 1.0
  assert found['decoder_loss_weights'].any()
  # Far out, epochs still are epochs.
  plain = reader(mixed, [np.arange(30)] * 2)
  size = len(plain.sequences)
  first = -(-step * BATCH // size) * size
  places = np.arange(first, first + size)
  chosen = plain._chosen(plain._endless(), 0, places)
  assert sorted(chosen) == list(range(size))


def test_the_examples_of_a_step(store):
  sequences = reader(store, [np.arange(25), np.arange(35)])
  for step in (0, 7):
    [batch] = batches(sequences, step, step + 1)
    found = sequences.examples(step)
    assert len(found) == len(set(found))
    # Document n of the first shard is all n + 10, of the second all n + 35.
    tokens = [
      10 + 25 * int(shard) + int(sequence)
      for shard, sequence in (name.split('-') for _, name in found)
    ]
    seen = dict.fromkeys(batch['decoder_target_tokens'].ravel().tolist())
    assert [token for token in seen if token not in (0, store.eos_id)] == tokens


def test_only_what_is_kept_is_ever_seen(store):
  rng = np.random.default_rng(1)
  keep = [
    np.sort(rng.choice(size, size // 2, replace=False)) for size in (25, 35)
  ]
  sequences = reader(store, keep)
  expected = {10 + int(n) for n in keep[0]} | {35 + int(n) for n in keep[1]}
  steps = 3 * len(sequences.sequences) // BATCH
  seen = set()
  for batch in batches(sequences, 0, steps):
    counted = batch['decoder_loss_weights'] > 0
    seen |= set(np.unique(batch['decoder_target_tokens'][counted]).tolist())
    inputs = batch['decoder_input_tokens'][counted]
    assert set(np.unique(inputs).tolist()) <= expected | {store.bos_id}
  assert seen == expected | {store.eos_id}


def test_every_kept_token_and_its_eos_is_in_the_plan(store):
  keep = [np.array([3, 4]), np.array([], int)]
  sequences = reader(store, keep)
  lengths = store.shard(0).column('num_tokens')[[3, 4]]
  assert sequences.sequences.plan.length.sum() == lengths.sum() + 2


SOURCES = ['web', 'books', 'web', 'news', 'books'] * 12
WEIGHTS = {'web': 1.0, 'books': 2.0, 'news': 5.0}


@pytest.fixture
def mixed(make_store):
  """60 documents of three sources; tokens are 10, 20 or 30 by source."""
  token = {'web': 10, 'books': 20, 'news': 30}
  documents = [[token[name]] * (2 + n % 9) for n, name in enumerate(SOURCES)]
  return make_store(
    [documents[:30], documents[30:]], sources=[SOURCES[:30], SOURCES[30:]]
  )


def test_a_mixture_has_the_shares_asked_for(mixed):
  sequences = reader(mixed, [np.arange(30)] * 2, mixture=WEIGHTS)
  found = batches(sequences, 0, 100)
  tokens = np.concatenate([b['decoder_target_tokens'].ravel() for b in found])
  shares = [np.mean(tokens == token) for token in (10, 20, 30)]
  relative = np.array(shares) / shares[0]
  assert relative == pytest.approx([1.0, 2.0, 5.0], rel=0.15)


def test_a_row_of_a_mixture_has_one_source(mixed):
  sequences = reader(mixed, [np.arange(30)] * 2, mixture=WEIGHTS)
  for batch in batches(sequences, 0, 20):
    for sequence in batch['decoder_target_tokens']:
      assert len(set(sequence.tolist()) - {0, mixed.eos_id}) == 1


def test_a_mixture_can_start_late(mixed):
  sequences = reader(mixed, [np.arange(30)] * 2, mixture=WEIGHTS)
  assert same(batches(sequences, 11, 20), batches(sequences, 0, 20)[11:])


def test_epochs_of_a_mixture(mixed):
  sequences = reader(mixed, [np.arange(30)] * 2, mixture=WEIGHTS)
  facts = sequences.facts(100)
  sizes = dict(
    zip(sequences.sources, np.diff(sequences.sequence_offsets), strict=True)
  )
  read = {
    name: epochs * sizes[name]
    for name, epochs in facts['epochs_by_source'].items()
  }
  assert sum(read.values()) == pytest.approx(100 * BATCH)
  assert read['news'] == pytest.approx(5 * read['web'])


@pytest.mark.parametrize(
  'mixture, named',
  [
    ({'web': 1.0, 'books': 1.0}, r"leaves out \['news'\]"),
    ({**WEIGHTS, 'blogs': 1.0}, r"of \['blogs'\] there is no document"),
  ],
)
def test_a_mixture_names_the_sources(mixed, mixture, named):
  with pytest.raises(UserError, match=named):
    reader(mixed, [np.arange(30)] * 2, mixture=mixture)


def test_nothing_to_read_is_refused(store):
  with pytest.raises(UserError, match='no document to train on'):
    reader(store, [np.zeros(0, int)] * 2)
