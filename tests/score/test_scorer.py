import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_store import LENGTHS, RandomStore as Store

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import mesh as mesh_lib, network, partitioning
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.score import scorer, stage
from infoprune_jax.score.documents import Documents
from infoprune_jax.tokens.token_store import TokenStore


@pytest.fixture(scope='module')
def score(small, mesh, params):
  """(store, sequences, **edits of the scoring section) -> [documents] float64."""

  def call(store, sequences, params=params, **edits):
    scoring = dataclasses.replace(small.score, **edits)
    program = scorer.compile_scorer(
      small.model, scoring, Store.vocab_size, mesh
    )
    sequences = np.asarray(sequences)
    return program.document_nll(
      params, store, np.zeros(len(sequences), int), sequences
    )

  return call


def test_equals_documents_scored_alone(score):
  store = Store(LENGTHS)
  together, _ = score(store, range(len(LENGTHS)), sequence_length=256)
  alone = [
    score(store, [d], sequence_length=256)[0][0] for d in range(len(LENGTHS))
  ]
  np.testing.assert_allclose(together, alone, rtol=1e-5)
  assert together[3] == 0.0
  assert np.all(together[np.array(LENGTHS) > 0] > 0)


def test_layers_are_unrolled_where_the_config_leaves_that_open(small, mesh):
  for given, taken in ((0, small.model.num_layers), (1, 1)):
    model = dataclasses.replace(small.model, scan_unroll=given)
    program = scorer.compile_scorer(model, small.score, Store.vocab_size, mesh)
    assert program.model.scan_unroll == taken


@pytest.mark.parametrize('batch_size', [1, 3, 8])
def test_batch_size_does_not_matter(score, batch_size):
  store = Store(LENGTHS)
  expected, _ = score(store, range(len(LENGTHS)))
  found, _ = score(store, range(len(LENGTHS)), per_device_batch_size=batch_size)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize('ways', [2, 3])
def test_other_numbers_of_hosts_differ_by_rounding_alone(score, ways):
  """Each packs documents of its own, so a document lies elsewhere in a sequence."""
  store = Store(LENGTHS)
  numbers = np.arange(len(LENGTHS))
  one, _ = score(store, numbers)
  found = np.empty_like(one)
  for group in range(ways):
    found[group::ways], _ = score(store, numbers[group::ways])
  np.testing.assert_allclose(found, one, rtol=1e-6)


def test_rows_spread_over_devices(small, score, params):
  store, sequences = Store(LENGTHS), np.arange(len(LENGTHS))
  config = MeshConfig(data=1, fsdp=2, tensor=2, sequence=2)
  mesh = mesh_lib.make_mesh(config)
  program = scorer.compile_scorer(
    small.model, small.score, Store.vocab_size, mesh
  )
  shapes = scorer.abstract_params(small.model, Store.vocab_size, mesh)
  spread = jax.tree.map(
    lambda x, shape: jax.device_put(x, shape.sharding), params, shapes
  )
  found, _ = program.document_nll(
    spread, store, np.zeros_like(sequences), sequences
  )
  np.testing.assert_allclose(found, score(store, sequences)[0], rtol=1e-5)
  odd = dataclasses.replace(small.score, sequence_length=63)
  with pytest.raises(UserError, match='sequence_length of score .*=63 must be'):
    scorer.compile_scorer(small.model, odd, Store.vocab_size, mesh)


def test_windows_score_each_token_once(score, small, mesh, params):
  """Against windows laid out by hand, one sequence each."""
  store, length, overlap = Store(LENGTHS), 64, 16
  ids = store.tokens[store.offsets[6] : store.offsets[7]].astype(np.int32)
  inputs = np.concatenate([[store.bos_id], ids[:-1]])
  expected, counted = 0.0, 0
  for start in range(0, len(ids), length - overlap):
    stop = min(start + length, len(ids))
    sequence = {
      'decoder_input_tokens': inputs[start:stop],
      'decoder_target_tokens': ids[start:stop],
      'decoder_positions': np.arange(stop - start),
      'decoder_segment_ids': np.ones(stop - start, np.int32),
    }
    batch = {n: np.zeros((1, length), np.int32) for n in sequence}
    for name, values in sequence.items():
      batch[name][0, : stop - start] = values
    with partitioning.use_mesh(mesh):
      batch = jax.tree.map(jnp.asarray, batch)
      nll = np.asarray(
        network.batch_statistics(small.model, params, batch)['nll']
      )[0]
    first = overlap if start else 0
    expected += nll[first : stop - start].astype(np.float64).sum()
    counted += stop - start - first
    if stop == len(ids):
      break
  assert counted == len(ids) == 200
  found, _ = score(store, [6], sequence_length=length, window_overlap=overlap)
  np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_context_helps_what_a_window_cuts(score):
  """More overlap, another score: the context reaches the model."""
  store = Store(LENGTHS)
  short, _ = score(store, [6], window_overlap=1)
  long, _ = score(store, [6], window_overlap=48)
  assert short[0] != long[0]


def test_sum_is_in_float64_and_token_order(score):
  store = Store([40])
  sums, flops = score(store, [0])
  assert sums.dtype == np.float64
  assert flops > 0


def test_nan_names_the_document(score, params):
  broken = jax.tree.map(lambda x: x * np.float32('nan'), params)
  with pytest.raises(UserError, match=r'shard 0, doc_index 1\) of a store'):
    score(Store([0, 5, 9]), [0, 1, 2], params=broken)


def test_a_reference_of_another_corpus_is_refused(
  small, store_workdir, tmp_path
):
  for name in ('token_store', 'vocabulary'):
    (tmp_path / name).symlink_to(f'{store_workdir}/{name}')
  artifacts.Artifact(
    reference_dir(str(tmp_path)),
    'run',
    'reference',
    {},
    {'token_store': 'f' * 16},
  ).finish({}, step=12)
  with pytest.raises(UserError) as error:
    stage.run(small, str(tmp_path))
  store = TokenStore.open(store_workdir)
  for word in ('reference model', 'f' * 16, store.fingerprint, 'Delete'):
    assert word in str(error.value)
  assert not list((tmp_path / 'scores').rglob('part-*'))


def test_tokens_are_reported_as_they_are_counted(small, mesh, params):
  program = scorer.compile_scorer(
    small.model, small.score, Store.vocab_size, mesh
  )
  seen = []
  program.document_nll(
    params,
    Store(LENGTHS),
    np.zeros(len(LENGTHS), int),
    np.arange(len(LENGTHS)),
    on_batch=seen.append,
  )
  assert sum(seen) == sum(LENGTHS)


def test_a_token_beyond_the_vocabulary_is_no_other_token(small, mesh, params):
  store = Store(LENGTHS)
  store.tokens[store.offsets[6] + 150] = Store.vocab_size
  with pytest.raises(UserError) as error:
    scorer.compile_scorer(
      small.model, small.score, Store.vocab_size, mesh
    ).document_nll(
      params, store, np.zeros(len(LENGTHS), int), np.arange(len(LENGTHS))
    )
  for words in (
    '(shard 0, doc_index 6)',
    'token id 64 at position 150',
    'the model has 64 ids',
  ):
    assert words in str(error.value)


@pytest.mark.parametrize('most, advice', [(3, 'size=2 fits'), (0, 'mesh.fsdp')])
def test_no_memory_names_a_batch_that_fits(
  small, mesh, monkeypatch, most, advice
):
  compiled = scorer._compile.__wrapped__

  def compile_in_vain(model, scoring, *rest):
    if scoring.per_device_batch_size > most:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    return compiled(model, scoring, *rest)

  monkeypatch.setattr(scorer, '_compile', compile_in_vain)
  scoring = dataclasses.replace(small.score, per_device_batch_size=16)
  with pytest.raises(UserError, match=f'per_device_batch_size=16, .*{advice}'):
    scorer.compile_scorer(small.model, scoring, Store.vocab_size, mesh)


def test_a_document_of_a_million_tokens(small):
  """Windows of it go by, each token counted once, in bounded memory."""
  store = Store([1_000_000, 3])
  scoring = dataclasses.replace(
    small.score,
    sequence_length=4096,
    window_overlap=96,
    per_device_batch_size=1,
  )
  counted = Documents(store, np.zeros(2, int), np.arange(2), scoring)
  zeros = np.zeros((8, 4096), np.float32)
  for chosen, batch in counted.batches(8, Store.vocab_size):
    assert batch['decoder_target_tokens'].shape == (8, 4096)
    counted.add(chosen, [{'nll': zeros + 0.5}])
  assert counted.sums()[0]['nll'].tolist() == [500_000.0, 1.5]


def test_programs_for_all_limits_compile_before_they_run(
  small, mesh, monkeypatch
):
  """Of cuDNN's attention, which alone has several."""
  compiled = []
  monkeypatch.setattr(
    scorer, '_compile', lambda *args: compiled.append(args[-1])
  )
  model = dataclasses.replace(small.model, attention='cudnn')
  scorer.Scorer(mesh, model, small.score, 9).compile([40, 1, 1, 7, 8])
  assert sorted(compiled) == [2, 8, 32, 128]
  compiled.clear()
  scorer.Scorer(mesh, small.model, small.score, 9).compile([40, 1, 1, 7, 8])
  scorer.Scorer(mesh, model, small.score, 9).compile([])
  assert compiled == [0]
