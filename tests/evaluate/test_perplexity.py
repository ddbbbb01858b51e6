import dataclasses
import math

import jax
import numpy as np
import pytest

from infoprune_jax.evaluate import perplexity
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.train import state


@pytest.fixture(scope='module')
def mesh(small):
  return mesh_lib.make_mesh(small.mesh)


def curve(small, store, mesh, tokens):
  evaluate = dataclasses.replace(small.evaluate, online_eval_tokens=tokens)
  return perplexity.make_curve(
    evaluate, small.model, store.vocab_size, store, mesh
  )


def test_units():
  found = perplexity.losses(nll_sum=100.0, num_tokens=50, num_bytes=200)
  assert found['heldout_nll'] == 2.0
  assert found['heldout_bits_per_byte'] == pytest.approx(0.5 / math.log(2))


def test_heldout_documents_are_all_and_only_those_of_the_split(store):
  shard_index, doc_index = perplexity.heldout_documents(store)
  assert len(shard_index) == store.manifest['splits']['heldout']['documents']
  elsewhere, heldout = set(), set()
  for shard in range(store.num_shards):
    hashes = store.shard(shard).column('content_hash')
    inside = np.isin(np.arange(len(hashes)), doc_index[shard_index == shard])
    heldout |= set(hashes[inside].tolist())
    elsewhere |= set(hashes[~inside].tolist())
  # Copies too: nothing trains on what is held out, in any wrapping.
  assert not heldout & elsewhere


def test_curve_keeps_to_its_tokens_and_grows_with_them(small, store, mesh):
  total = store.manifest['splits']['heldout']['tokens']
  few = curve(small, store, mesh, total // 3)
  more = curve(small, store, mesh, total)
  # One of each source may be beyond.
  first = [few.num_tokens[few.source == s].max() for s in set(few.source)]
  assert 0 < few.num_tokens.sum() - sum(first) <= total // 3
  assert more.num_tokens.sum() == total
  pairs = [
    set(zip(c.shard_index, c.doc_index, strict=True)) for c in (few, more)
  ]
  assert pairs[0] < pairs[1]


def test_curve_has_all_sources(small, store, mesh):
  least = curve(small, store, mesh, 1)
  assert sorted(least.source) == ['copies', 'prose', 'template']


def test_losses_by_source_add_up(small, store, mesh):
  some = curve(small, store, mesh, 2000)
  with partitioning.use_mesh(mesh):
    params = network.init_params(
      small.model, store.vocab_size, jax.random.key(0)
    )
  found = some.losses(params)
  by_source = [
    found[f'heldout_nll/{source}']
    * some.num_tokens[some.source == source].sum()
    for source in set(some.source)
  ]
  assert sum(by_source) / some.num_tokens.sum() == pytest.approx(
    found['heldout_nll']
  )


def test_untrained_model_is_near_uniform(small, store, mesh):
  program = state.compile_program(
    small.model, small.train.training, store.vocab_size, mesh
  )
  found = curve(small, store, mesh, 10**6).losses(program.init(0)['params'])
  assert found['heldout_nll'] == pytest.approx(
    math.log(store.vocab_size), abs=0.3
  )
