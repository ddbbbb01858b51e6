"""Statistics of the tokens of whole documents, by the scorer."""

import dataclasses
import threading
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import LENGTHS, RandomStore as Store

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.runtime import distributed
from infoprune_jax.score import scorer

STATISTICS = ('entropy', 'greedy', 'error_norm')


@pytest.fixture(scope='module')
def statistics(small, mesh, params):
  """(store, documents, mesh, parameters) -> every statistic of each token."""

  def call(store, sequences, mesh=mesh, params=params, **edits):
    scoring = dataclasses.replace(
      small.score, statistics=(*STATISTICS, 'nll_first_3'), **edits
    )
    program = scorer.compile_scorer(
      small.model, scoring, Store.vocab_size, mesh
    )
    sequences = np.asarray(sequences)
    return program.token_statistics(
      params,
      store,
      np.zeros(len(sequences), int),
      sequences,
      ('nll', *STATISTICS),
    )

  return call


def log_probabilities(small, mesh, params, inputs):
  """[tokens, V] of one sequence: the NLL of each id as the target."""
  vocab_size, length = Store.vocab_size, len(inputs)
  shape = (vocab_size, length)
  ids = np.broadcast_to(np.arange(vocab_size)[:, None], shape)
  batch = {
    'decoder_input_tokens': np.broadcast_to(inputs, shape),
    'decoder_target_tokens': ids,
    'decoder_positions': np.broadcast_to(np.arange(length), shape),
    'decoder_segment_ids': np.ones(shape),
  }
  with partitioning.use_mesh(mesh):
    batch = {n: jnp.asarray(x, jnp.int32) for n, x in batch.items()}
    nll = network.batch_statistics(small.model, params, batch)['nll']
  return -np.asarray(nll, np.float64).T


def by_definition(log_p, targets):
  p = np.exp(log_p)
  error = p - np.eye(log_p.shape[1])[targets]
  return {
    'nll': -log_p[np.arange(len(targets)), targets],
    'entropy': -(p * log_p).sum(-1),
    'greedy': log_p.argmax(-1) == targets,
    'error_norm': np.linalg.norm(error, axis=-1),
  }


def check_statistics(found, expected):
  assert found.keys() == expected.keys()
  for name, values in found.items():
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected[name], atol=2e-5, err_msg=name)


@pytest.fixture(scope='module')
def greedy_store(small, mesh, params):
  """Documents in which every third token is the argmax of the model."""
  store = Store(LENGTHS)
  for start, stop in zip(store.offsets[:-1], store.offsets[1:], strict=True):
    # Of windows after the first some are not: their context is another.
    ids = store.tokens[start:stop].astype(np.int32)
    if 0 < len(ids) <= 64:
      inputs = np.concatenate([[store.bos_id], ids[:-1]])
      best = log_probabilities(small, mesh, params, inputs).argmax(-1)
      store.tokens[stop - 1] = best[-1]
  return store


def test_token_statistics_equal_the_definition(
  small, mesh, params, statistics, greedy_store
):
  """Of packed documents, in the order in which they are asked for."""
  store = greedy_store
  order = [7, 5, 0, 3, 4, 1]
  expected = []
  for number in order:
    ids = store.tokens[store.offsets[number] : store.offsets[number + 1]]
    ids = ids.astype(np.int32)
    inputs = np.concatenate([[store.bos_id], ids])[: len(ids)]
    log_p = np.zeros((0, Store.vocab_size))
    if len(ids):
      log_p = log_probabilities(small, mesh, params, inputs)
    expected.append(by_definition(log_p, ids))
  joined = {
    name: np.concatenate([each[name] for each in expected])
    for name in expected[0]
  }
  assert 0 < joined['greedy'].sum() < len(joined['greedy'])
  check_statistics(statistics(store, order, sequence_length=64), joined)


def test_token_statistics_of_windows(
  small, mesh, params, statistics, greedy_store
):
  """Each token in the window that first reaches it."""
  store, length, overlap = greedy_store, 64, 16
  ids = store.tokens[store.offsets[6] : store.offsets[7]].astype(np.int32)
  inputs = np.concatenate([[store.bos_id], ids[:-1]])
  log_p = np.zeros((len(ids), Store.vocab_size))
  scored = 0
  for start in range(0, len(ids), length - overlap):
    stop = min(start + length, len(ids))
    window = log_probabilities(small, mesh, params, inputs[start:stop])
    log_p[scored:stop] = window[scored - start :]
    scored = stop
  found = statistics(store, [6], sequence_length=length, window_overlap=overlap)
  check_statistics(found, by_definition(log_p, ids))


def test_token_statistics_spread_over_devices(
  small, params, statistics, greedy_store
):
  """With the vocabulary over two devices, and without it."""
  mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  shapes = scorer.abstract_params(small.model, Store.vocab_size, mesh)
  spread = jax.tree.map(
    lambda x, shape: jax.device_put(x, shape.sharding), params, shapes
  )
  order = np.arange(len(LENGTHS))
  check_statistics(
    statistics(greedy_store, order, mesh, spread),
    statistics(greedy_store, order),
  )


def test_a_statistic_that_was_not_compiled_is_refused(small, mesh, params):
  program = scorer.compile_scorer(
    small.model, small.score, Store.vocab_size, mesh
  )
  none = np.zeros(0, int)
  with pytest.raises(ValueError, match=r"not \['greedy'\]: name them"):
    program.token_statistics(
      params, Store(LENGTHS), none, none, ('nll', 'greedy')
    )


class Hosts:
  """Two hosts as two threads, each a group that feeds its own sequences."""

  def __init__(self):
    self._local = threading.local()
    self._barrier = threading.Barrier(2, timeout=120)
    self._values = [None, None]

  def index(self):
    return getattr(self._local, 'index', 0)

  def all_gather(self, name, value, *_):
    del name
    self._barrier.wait()
    self._values[self.index()] = value
    self._barrier.wait()
    return list(self._values)

  def run(self, function):
    def one(index):
      self._local.index = index
      return function()

    with futures.ThreadPoolExecutor(2) as pool:
      return list(pool.map(one, range(2)))


def test_every_host_gets_the_tokens_of_all(
  small, mesh, params, greedy_store, monkeypatch, statistics
):
  hosts = Hosts()
  monkeypatch.setattr(distributed, 'index', hosts.index)
  monkeypatch.setattr(distributed, 'all_gather', hosts.all_gather)
  monkeypatch.setattr(scorer, '_SENT', 50)
  scoring = dataclasses.replace(small.score, statistics=('greedy',))
  compiled = scorer.compile_scorer(small.model, scoring, Store.vocab_size, mesh)

  def host(order):
    own = dataclasses.replace(compiled)
    own.__dict__.update(
      groups=[([0], [0]), ([1], [0])],
      group=hosts.index(),  # Other threads of the scorer ask for it.
    )
    zeros = np.zeros_like(order)
    sums, _ = own.document_nll(params, greedy_store, zeros, order)
    values = own.token_statistics(
      params, greedy_store, zeros, order, ('greedy', 'nll')
    )
    return sums, values

  for order in (np.array([6, 3, 2, 8, 1]), np.array([6])):
    expected = statistics(greedy_store, order)
    for sums, values in hosts.run(lambda o=order: host(o)):
      assert list(values) == ['greedy', 'nll']
      for name, found in values.items():
        np.testing.assert_allclose(found, expected[name], atol=1e-5)
      ends = np.cumsum(greedy_store.lengths[order])[:-1]
      each = np.split(values['nll'].astype(float), ends)
      np.testing.assert_allclose(sums, [x.sum() for x in each], rtol=1e-12)
