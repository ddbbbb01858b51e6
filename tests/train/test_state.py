import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused
from random_store import RandomStore

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import (
  attention,
  mesh as mesh_lib,
  network,
  partitioning,
)
from infoprune_jax.model.kernels import gpu_attention
from infoprune_jax.train import optimizer, runs, state

VOCAB = RandomStore.vocab_size + 3  # Which 2 devices do not divide.


def program_on(small, data, fsdp, tensor, mesh=None, **edits):
  """On as many devices as `mesh`, or data x fsdp x tensor, asks for."""
  config = mesh or MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
  count = config.data * config.fsdp * config.tensor * config.sequence
  count *= config.dcn_data * config.dcn_fsdp
  mesh = mesh_lib.make_mesh(config, jax.devices()[:count])
  model = dataclasses.replace(small.model, num_heads=2, num_kv_heads=2)
  training = dataclasses.replace(small.train.training, **edits)
  return state.compile_program(model, training, VOCAB, mesh)


def two_steps(program):
  sequences = RandomStore([60, 13, 40, 21, 64, 5, 30, 33] * 6).packed(64)
  batch = sequences.batch(np.arange(8), 8)
  tree, metrics = program.init(0), None
  for _ in range(2):
    tree, metrics = program.step(tree, program.put(batch))
  return jax.device_get(tree), jax.device_get(metrics)


@pytest.fixture(scope='module')
def single(small):
  return two_steps(program_on(small, 1, 1, 1))


EVERYWHERE = {'embed': ('fsdp', 'sequence'), 'vocab': ()}
MESHES = {
  'data': dict(data=8),
  'fsdp': dict(data=2, fsdp=2),
  'fsdp-tensor': dict(data=2, fsdp=2, tensor=2),
  'sequence': dict(fsdp=2, sequence=2),
  'sequence-tensor': dict(sequence=4, tensor=2, rules=EVERYWHERE),
  'slices': dict(data=2, tensor=2, dcn_data=2),
  'fsdp-over-slices': dict(fsdp=2, sequence=2, dcn_fsdp=2),
}


@pytest.fixture
def two_slices(monkeypatch):
  kind = type(jax.devices()[0])
  slice_of = property(lambda device: device.id // 4)
  monkeypatch.setattr(kind, 'slice_index', slice_of, raising=False)


@pytest.mark.parametrize('sizes', MESHES.values(), ids=MESHES)
@pytest.mark.usefixtures('two_slices')
def test_sharded_step_equals_single_device(small, single, sizes):
  mesh = MeshConfig(**{'data': 1, 'fsdp': 1, 'tensor': 1, **sizes})
  program = program_on(small, 1, 1, 1, mesh)
  tree, metrics = two_steps(program)
  for name, value in single[1].items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  # AdamW's first steps turn a rounding of a tiny gradient into a step; what is
  # bounded is the share of parameters that such a rounding moves.
  close = [
    np.isclose(a, b, atol=2e-4).mean()
    for a, b in zip(
      jax.tree.leaves(tree['params']),
      jax.tree.leaves(single[0]['params']),
      strict=True,
    )
  ]
  assert min(close) > 0.99
  moments = program.shapes['opt_state'][1][0].mu['embedding']
  assert moments.sharding == program.shapes['params']['embedding'].sharding


def test_rows_spread_over_devices_are_cut_in_every_layer(small):
  """No device holds a whole sequence of what a layer computes."""
  mesh = MeshConfig(data=1, fsdp=2, tensor=1, sequence=2)
  program = program_on(small, 1, 1, 1, mesh)
  text = program.step.as_text()
  sequences, length = 4, 64 // 2
  assert f'f32[{sequences},{length},{small.model.mlp_dim}]' in text
  assert f'f32[{sequences},64,{small.model.mlp_dim}]' not in text


def test_rows_that_do_not_spread_are_named(small):
  mesh = MeshConfig(data=1, fsdp=1, tensor=1, sequence=8)
  with pytest.raises(
    UserError, match='training.sequence_length=60 must be .* by 8'
  ):
    program_on(small, 1, 1, 1, mesh, sequence_length=60)


def uneven_rows():
  """Of 16 sequences three are padding, and others hold one short document."""
  sequences = RandomStore([60, 13, 64, 5, 30, 64, 2, 33] * 3).packed(64)
  return sequences.batch(np.arange(13), 16)


def test_shards_of_a_batch_make_the_step_of_the_whole(small):
  results = []
  for parts in (1, 4):
    program = program_on(
      small,
      *(2, 2, 2),
      batch_size=16,
      gradient_accumulation_steps=parts,
      z_loss=1e-2,
      # Adam makes signs of gradients: a change of their size would not show.
      warmup_steps=0,
      max_grad_norm=1e-3,
    )
    tree, metrics = program.init(0), None
    tree, metrics = program.step(tree, program.put(uneven_rows()))
    results.append((tree, metrics))
  (whole, whole_metrics), (summed, metrics) = jax.device_get(results)
  assert metrics['tokens'] == uneven_rows()['decoder_loss_weights'].sum()
  for name, value in whole_metrics.items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)
  # The first moment is the gradient, but for a factor.
  moments = [t['opt_state'][1][0].mu for t in (summed, whole)]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-9),
    *moments,
  )


def test_shards_that_do_not_spread_are_named(small):
  with pytest.raises(UserError) as error:
    program_on(small, 8, 1, 1, gradient_accumulation_steps=2)
  assert 'batch_size / gradient_accumulation_steps=4 must be' in str(
    error.value
  )


def test_losses_are_means_over_the_tokens_that_count(small):
  sequences = uneven_rows()
  sequences['decoder_loss_weights'][:, ::3] = 0.0
  plain = program_on(small, 1, 1, 1, batch_size=16)
  program = program_on(small, 1, 1, 1, batch_size=16, z_loss=0.1)
  params = plain.init(0)['params']
  _, without = plain.step(plain.init(0), plain.put(sequences))
  _, metrics = program.step(program.init(0), program.put(sequences))
  assert 'z_loss' not in without
  assert metrics['loss'] == without['loss']
  assert metrics['grad_norm'] != without['grad_norm']
  model = dataclasses.replace(small.model, num_heads=2, num_kv_heads=2)
  weights = sequences['decoder_loss_weights']
  with partitioning.use_mesh(program.mesh):
    _, nll, log_z = jax.jit(
      lambda params, sequences, weights: network.batch_loss(
        model, params, sequences, weights, 0.0
      )
    )(params, *jax.tree.map(jnp.asarray, (sequences, weights)))
  for name, values in (('loss', nll), ('z_loss', 0.1 * np.square(log_z))):
    expected = np.sum(values * weights) / weights.sum()
    np.testing.assert_allclose(metrics[name], expected, rtol=1e-5)


def test_gradient_leaves_nothing_out(single, small):
  start = jax.device_get(program_on(small, 1, 1, 1).init(0))['params']
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)), start, single[0]['params']
  )
  assert all(jax.tree.leaves(moved))


def test_decay_goes_by_logical_axes(small):
  axes = network.param_axes(small.model, VOCAB)
  decays = jax.tree.map(
    optimizer.decays, axes, is_leaf=lambda node: isinstance(node, tuple)
  )
  assert decays['embedding'] and decays['layers']['mlp']['up']
  assert not decays['final_norm']['scale']
  # A stacked norm has two axes, and still does not decay.
  assert not decays['layers']['mlp_norm']['scale']


def test_schedule(small):
  training = dataclasses.replace(
    small.train.training,
    num_steps=100,
    warmup_steps=10,
    learning_rate=1.0,
    final_learning_rate_ratio=0.1,
  )
  schedule = optimizer.learning_rate_schedule(training)
  assert schedule(0) == 0.0
  assert schedule(5) == pytest.approx(0.5)
  assert schedule(10) == pytest.approx(1.0)
  assert schedule(55) == pytest.approx(0.55)
  assert schedule(100) == pytest.approx(0.1)


def test_what_is_kept_is_float32_whatever_computes(small):
  model = dataclasses.replace(
    small.model, num_heads=2, num_kv_heads=2, dtype='bfloat16'
  )
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  program = state.compile_program(model, small.train.training, VOCAB, mesh)
  tree, metrics = two_steps(program)
  kept = {leaf.dtype.name for leaf in jax.tree.leaves(tree)}
  assert kept == {'float32', 'int32'}  # Counts are int32.
  whole = two_steps(program_on(small, 1, 1, 1))[1]['loss']
  assert metrics['loss'] != whole
  np.testing.assert_allclose(metrics['loss'], whole, atol=0.02)


def test_a_run_is_not_how_far_it_goes_nor_how_it_is_computed(small):
  def options(model=small.model, **edits):
    training = dataclasses.replace(small.train.training, **edits)
    return runs.run_options(model, training, 0)

  for same in (
    {'num_steps': 13},
    {'num_steps': 0, 'num_tokens': 10**6},
    {'num_steps': 0, 'num_flops': 1e15},
    {'gradient_accumulation_steps': 2},
    {
      'model': dataclasses.replace(
        small.model, remat='full', loss_chunk_tokens=7
      )
    },
  ):
    assert options(**same) == options()
  for other in (
    {'optimizer': 'muon'},
    {'schedule': 'wsd'},
    {'z_loss': 1e-4},
    {'model': dataclasses.replace(small.model, dtype='bfloat16')},
  ):
    assert options(**other) != options()


def test_padding_has_no_say(small):
  program = program_on(small, 1, 1, 1)
  sequences = RandomStore([60, 13, 40, 21]).packed(64)
  batch = sequences.batch(np.arange(2), 8)
  changed = {name: values.copy() for name, values in batch.items()}
  padding = changed['decoder_segment_ids'] == 0
  changed['decoder_input_tokens'][padding] = 7
  changed['decoder_target_tokens'][padding] = 9
  losses = [
    float(program.step(program.init(0), program.put(b))[1]['loss'])
    for b in (batch, changed)
  ]
  assert losses[0] == losses[1]


def test_kernels_of_scoring_are_not_trained_with(small, single):
  """They have no backward pass, and a run does not depend on them."""
  model = dataclasses.replace(
    small.model, num_heads=2, num_kv_heads=2, loss_kernel='hopper'
  )
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  training = small.train.training
  trained = two_steps(state.compile_program(model, training, VOCAB, mesh))
  for a, b in zip(
    jax.tree.leaves(trained), jax.tree.leaves(single), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  plain = dataclasses.replace(model, attention='cudnn', loss_kernel='auto')
  options = [runs.run_options(m, training, 0) for m in (model, plain)]
  assert options[0] == options[1]


def from_the_list(query, key, value, lengths, offsets, fits, scale):
  """What cuDNN computes from the list that JAX gives it, in XLA."""
  batch, length, heads, dim = query.shape
  _, _, starts, _ = fused._fix_seqlen_offsets(
    lengths, lengths, offsets, offsets, query, query
  )
  starts = starts.reshape(-1) // (heads * dim)
  begins = jnp.zeros(batch * length, jnp.int32).at[starts].set(1, mode='drop')
  ids = jnp.cumsum(begins).reshape(batch, length)
  query = jnp.where(fits[:, None, None, None], query, jnp.nan)
  form = attention.Logits(scale)
  return attention._xla(query, key, value, ids, ids, form)


def test_a_step_for_few_segments_computes_what_xla_does(small, monkeypatch):
  """The limit is below the maximum, and grows for a batch that needs more."""
  monkeypatch.setattr(gpu_attention, 'cudnn', from_the_list)
  monkeypatch.setattr(state.backends, 'resolve_training', lambda m, *_: m)
  sequences = RandomStore([*[64] * 4, *[3] * 84]).packed(64)
  segments = sequences.plan.segments_per_sequence
  few, many = np.split(np.argsort(segments), 2)
  # Each device has two with many segments, then two with few.
  order = [*many[:2], *few[:2], *many[2:], *few[2:]]
  batch = sequences.batch(np.array(order), 8)
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=2, fsdp=1, tensor=1), jax.devices()[:2]
  )
  training = dataclasses.replace(
    small.train.training, gradient_accumulation_steps=2
  )
  metrics = {}
  for name in ('xla', 'cudnn'):
    model = dataclasses.replace(
      small.model, attention=name, num_heads=2, num_kv_heads=2
    )
    program = state.compile_program(model, training, VOCAB, mesh)
    step = program.step_for(batch)
    _, metrics[name] = step(program.init(0), program.put(batch))
  assert program.segment_limit == 2 and step is program.with_limit(16).step
  assert max(segments) > 16
  for name in ('loss', 'grad_norm', 'tokens'):
    np.testing.assert_allclose(
      metrics['cudnn'][name], metrics['xla'][name], rtol=1e-5
    )


@pytest.mark.parametrize(
  'choice, segments, expected',
  [
    ('auto', 1, ('cudnn', 2)),
    ('auto', 9, ('pallas', 0)),
    ('cudnn', 9, ('cudnn', 16)),
  ],
)
def test_auto_leaves_cudnn_where_segments_make_it_slow(
  small, monkeypatch, choice, segments, expected
):
  def resolved(model, mesh, length):
    return dataclasses.replace(model, attention='cudnn')

  monkeypatch.setattr(state.backends, 'resolve_training', resolved)
  monkeypatch.setattr(
    state.backends, 'prefers_pallas', lambda *args: args[-1] > 2
  )
  monkeypatch.setattr(state, '_choose', lambda model, *_: model)
  monkeypatch.setattr(
    state, '_compile', lambda model, *args: (model.attention, args[-1])
  )
  model = dataclasses.replace(small.model, attention=choice)
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  found = state.compile_program(
    model, small.train.training, VOCAB, mesh, np.full(8, segments)
  )
  assert found == expected
