"""The choice of kernels."""

import dataclasses
import sys
import types

import numpy as np
import pytest

from infoprune_jax.config.model import LayerKind
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import backends


def gpu(kind, capability, platform='cuda'):
  client = types.SimpleNamespace(platform_version=f'PJRT C API\n{platform} 0')
  return types.SimpleNamespace(
    platform='gpu',
    compute_capability=capability,
    device_kind=kind,
    client=client,
  )


H100 = gpu('NVIDIA H100', '9.0')
A100 = gpu('NVIDIA A100', '8.0')
RTX_4090 = gpu('NVIDIA GeForce RTX 4090', '8.9')  # as is an L4
T4 = gpu('Tesla T4', '7.5')
B200 = gpu('NVIDIA B200', '10.0')
RTX_5090 = gpu('NVIDIA GeForce RTX 5090', '12.0')
MI300 = gpu('AMD Instinct MI300X', 'gfx942', 'rocm')
V4 = types.SimpleNamespace(platform='tpu', device_kind='TPU v4')
TPU = types.SimpleNamespace(platform='tpu', device_kind='TPU v5e')
APPLE = types.SimpleNamespace(platform='METAL', device_kind='Apple M4')
CPU = types.SimpleNamespace(platform='cpu', device_kind='cpu')


class Mesh:
  """What is asked of a mesh; of one device if no axis is spread."""

  def __init__(self, device, **num_shards):
    self.devices = np.array([[[device]]])
    self._ways = num_shards

  def num_shards(self, logical_axis):
    return self._ways.get(logical_axis, 1)


@pytest.fixture
def model(small):
  return dataclasses.replace(
    small.model,
    embed_dim=128,
    mlp_dim=256,
    head_dim=64,
    dtype='bfloat16',
  )


@pytest.mark.parametrize(
  'device, edits, attention, loss_kernel, mlp_kernel',
  [
    (CPU, {}, 'xla', 'xla', 'xla'),
    (TPU, {}, 'splash', 'tpu', 'xla'),
    (TPU, {'dtype': 'float32'}, 'splash', 'xla', 'xla'),
    (TPU, {'embed_dim': 96}, 'splash', 'xla', 'xla'),
    (V4, {}, 'splash', 'xla', 'xla'),
    (H100, {}, 'cudnn', 'hopper', 'hopper'),
    (A100, {}, 'pallas', 'xla', 'xla'),
    (RTX_4090, {}, 'pallas', 'xla', 'xla'),
    (T4, {}, 'xla', 'xla', 'xla'),
    (B200, {}, 'cudnn', 'xla', 'xla'),
    (RTX_5090, {}, 'cudnn', 'xla', 'xla'),
    (MI300, {}, 'xla', 'xla', 'xla'),
    (gpu('an AMD GPU', '9.0', 'rocm'), {}, 'xla', 'xla', 'xla'),
    (APPLE, {}, 'xla', 'xla', 'xla'),
    (H100, {'dtype': 'float32'}, 'xla', 'xla', 'xla'),
    (A100, {'dtype': 'float32'}, 'xla', 'xla', 'xla'),
    (H100, {'head_dim': 100}, 'pallas', 'hopper', 'hopper'),
    (A100, {'head_dim': 8}, 'xla', 'xla', 'xla'),
    (H100, {'mlp_dim': 200}, 'cudnn', 'hopper', 'xla'),
    (H100, {'attention': 'xla', 'loss_kernel': 'xla'}, 'xla', 'xla', 'hopper'),
    (H100, {'mlp_kernel': 'xla'}, 'cudnn', 'hopper', 'xla'),
    (TPU, {'head_dim': 32}, 'xla', 'tpu', 'xla'),
    (H100, {'logit_softcap': 30.0}, 'cudnn', 'xla', 'hopper'),
    (H100, {'activation': 'geglu'}, 'cudnn', 'hopper', 'xla'),
    (H100, {'mlp_bias': True}, 'cudnn', 'hopper', 'xla'),
    (H100, {'attention_softcap': 50.0}, 'xla', 'hopper', 'hopper'),
    (
      H100,
      {'layer_pattern': (LayerKind(window=512),)},
      'xla',
      'hopper',
      'hopper',
    ),
    (
      H100,
      {'layer_pattern': (LayerKind(window=1024),)},
      'cudnn',
      'hopper',
      'hopper',
    ),
    (TPU, {'layer_pattern': (LayerKind(window=512),)}, 'splash', 'tpu', 'xla'),
    (TPU, {'attention_softcap': 50.0}, 'splash', 'tpu', 'xla'),
  ],
)
def test_auto_takes_the_fastest_that_runs(
  model, device, edits, attention, loss_kernel, mlp_kernel
):
  model = dataclasses.replace(model, **edits)
  chosen = backends.resolve(model, Mesh(device), 8, 1024)
  assert chosen.attention == attention
  assert (chosen.loss_kernel, chosen.mlp_kernel) == (loss_kernel, mlp_kernel)


@pytest.mark.parametrize(
  'edits, longest',
  [
    ({'max_positions': 512}, 512),
    (
      {
        'layer_pattern': (
          LayerKind(
            rope_scaling='longrope',
            rope_original_length=256,
            rope_divisors=(1.0,) * 32,
          ),
        )
      },
      256,
    ),
  ],
)
def test_sequences_longer_than_the_model_takes_are_refused(
  model, edits, longest
):
  model = dataclasses.replace(model, **edits)
  backends.resolve(model, Mesh(CPU), 8, longest)
  message = f'is {longest + 1}, but the model takes .* most {longest} tokens'
  with pytest.raises(UserError, match=message):
    backends.resolve(model, Mesh(CPU), 8, longest + 1)
  with pytest.raises(UserError, match=message):
    backends.resolve_training(model, Mesh(CPU), longest + 1)


@pytest.mark.parametrize(
  'device, kernel, home, sequence_length, message',
  [
    (TPU, 'splash', 'tpu', 768, '768 tokens, cut in 4, are no multiple of 128'),
    (H100, 'cudnn', 'hopper', 1024, 'cuts sequences in 4, it takes whole ones'),
  ],
)
def test_what_a_kernel_of_attention_takes_of_rows_that_are_cut(
  model, device, kernel, home, sequence_length, message
):
  mesh = Mesh(device, length=4)
  found = backends.resolve(model, mesh, 8, sequence_length)
  assert (found.attention, found.loss_kernel) == ('xla', home)
  model = dataclasses.replace(model, attention=kernel)
  with pytest.raises(UserError, match=message):
    backends.resolve(model, mesh, 8, sequence_length)


def test_splash_takes_rows_that_are_cut(model):
  found = backends.resolve(model, Mesh(TPU, length=4), 8, 1024)
  assert found.attention == 'splash'


def test_hopper_counts_the_tokens_of_a_device(model):
  mesh = Mesh(H100, batch=4, length=2)  # 8 * 128 / 8 are no multiple of 256.
  assert backends.resolve(model, mesh, 8, 128).loss_kernel == 'xla'
  assert backends.resolve(model, mesh, 16, 128).loss_kernel == 'hopper'


def test_a_fallback_is_said_with_its_reason(model, caplog):
  model = dataclasses.replace(model, dtype='float32')
  mesh = Mesh(H100)
  for _ in range(2):
    backends.resolve(model, mesh, 8, 1024)
  warnings = [
    r.getMessage() for r in caplog.records if r.levelname == 'WARNING'
  ]
  assert len(warnings) == 3
  assert "model.attention: 'xla', which is slower than 'cudnn'" in warnings[0]
  assert 'bfloat16, the dtype here is float32' in warnings[1]
  assert "model.mlp_kernel: 'xla', which is slower than 'hopper'" in warnings[2]


@pytest.mark.parametrize('device', [T4, MI300])
def test_a_gpu_that_no_kernel_takes_is_said_once(model, device, caplog):
  """What runs and why, one line for each choice."""
  backends.resolve(model, Mesh(device), 8, 1024)
  lines = [record.getMessage() for record in caplog.records]
  for line, name, best in zip(
    lines,
    ('attention', 'loss_kernel', 'mlp_kernel'),
    ('pallas', 'hopper', 'hopper'),
    strict=True,
  ):
    assert line.startswith(
      f"model.{name}: 'xla', which is slower than '{best}': "
    )
    assert line.endswith(
      f'{device.device_kind} has {device.compute_capability}'
    )


@pytest.mark.parametrize('device', [A100, RTX_4090, T4, MI300])
def test_training_refuses_cudnn_where_it_does_not_run(model, device):
  model = dataclasses.replace(model, attention='cudnn')
  with pytest.raises(UserError, match='9.0 or later'):
    backends.resolve_training(model, Mesh(device), 1024)


def test_training_on_odd_lengths_leaves_cudnn_out(model):
  """JAX refuses an odd number of tokens in the backward pass."""
  mesh = Mesh(H100)
  assert backends.resolve_training(model, mesh, 1022).attention == 'cudnn'
  assert backends.resolve_training(model, mesh, 1021).attention == 'pallas'
  assert backends.resolve(model, mesh, 8, 1021).attention == 'cudnn'
  model = dataclasses.replace(model, attention='cudnn')
  with pytest.raises(UserError, match='an even number of tokens, not 1021'):
    backends.resolve_training(model, mesh, 1021)


@pytest.mark.parametrize(
  'device, length, limit, edits, preferred',
  [
    (H100, 1024, 16, {}, False),
    (H100, 1024, 32, {}, True),
    (H100, 2048, 32, {}, False),
    (H100, 512, 16, {}, True),
    (H100, 1024, 256, {'head_dim': 128}, False),
    (H100, 1024, 256, {'head_dim': 8}, False),
  ],
)
def test_many_segments_are_faster_by_pallas(
  model, device, length, limit, edits, preferred, caplog
):
  model = dataclasses.replace(model, **edits)
  with caplog.at_level('INFO'):
    found = backends.prefers_pallas(model, Mesh(device), length, limit)
  assert found == preferred
  said = f'pallas, because cudnn is slower with room for {limit} segments'
  assert (said in caplog.text) == preferred


def test_a_jax_without_its_kernel_takes_that_of_xla(model, monkeypatch):
  gone = types.SimpleNamespace(pallas_attention=lambda: None)
  monkeypatch.setattr(backends, 'gpu_attention', gone)
  chosen = backends.resolve_training(model, Mesh(A100), 512)
  assert chosen.attention == 'xla'


@pytest.mark.parametrize(
  'device, edits, message',
  [
    (CPU, {'attention': 'cudnn'}, 'runs on a GPU, the mesh is of cpu devices'),
    (H100, {'attention': 'splash'}, 'runs on a TPU'),
    (
      A100,
      {'loss_kernel': 'hopper'},
      'compute capability 9.0, NVIDIA A100 has 8.0',
    ),
    (
      B200,
      {'loss_kernel': 'hopper'},
      r'compute capability 9\.0, NVIDIA B200 has 10\.0\. Use .auto., ',
    ),
    (
      MI300,
      {'loss_kernel': 'hopper'},
      'an NVIDIA GPU of .* 9.0, AMD Instinct MI300X has gfx942',
    ),
    *(
      (
        device,
        {'attention': 'cudnn'},
        f'packed .* an NVIDIA GPU of compute capability 9.0 or later, '
        f'{device.device_kind} has {device.compute_capability}.* .xla., which '
        'runs anywhere',
      )
      for device in (A100, RTX_4090, T4, MI300)
    ),
    (
      H100,
      {'loss_kernel': 'hopper', 'embed_dim': 96},
      'embed_dim=96 must be multiples of 256, 64',
    ),
    (
      H100,
      {'mlp_kernel': 'hopper', 'activation': 'geglu'},
      'computes SwiGLU without biases',
    ),
    (
      H100,
      {'mlp_kernel': 'hopper', 'mlp_dim': 200},
      'mlp_dim=200 per device must be multiples of 256, 64 and 64',
    ),
    (
      H100,
      {'attention': 'cudnn', 'attention_softcap': 50.0},
      'cannot cap logits, model.attention_softcap=50.0',
    ),
    (
      A100,
      {'attention': 'pallas', 'layer_pattern': (LayerKind(window=512),)},
      r'windows of \[512\] tokens .* are not supported',
    ),
    (H100, {'loss_kernel': 'tpu'}, 'runs on a TPU, the mesh is of gpu devices'),
    (V4, {'loss_kernel': 'tpu'}, 'more than the 16 MiB .* of a TPU v4'),
    (TPU, {'loss_kernel': 'tpu', 'dtype': 'float32'}, 'dtype here is float32'),
    (
      TPU,
      {'loss_kernel': 'tpu', 'logit_softcap': 30.0},
      'it cannot cap logits',
    ),
    (
      TPU,
      {'loss_kernel': 'tpu', 'embed_dim': 96},
      'no multiple of 128 up to 8192',
    ),
    (
      H100,
      {'loss_kernel': 'hopper', 'logit_softcap': 30.0},
      r'cannot cap logits, model\.logit_softcap=30\.0',
    ),
  ],
)
def test_what_was_asked_for_is_not_replaced(model, device, edits, message):
  model = dataclasses.replace(model, **edits)
  with pytest.raises(UserError, match=message):
    backends.resolve(model, Mesh(device), 8, 1024)


@pytest.mark.parametrize(
  'device, edits, attention',
  [
    (CPU, {}, 'xla'),
    (TPU, {}, 'splash'),
    (V4, {'dtype': 'float32'}, 'splash'),
    (TPU, {'head_dim': 32}, 'xla'),
    (TPU, {'attention': 'xla'}, 'xla'),
    (H100, {}, 'cudnn'),
    (H100, {'head_dim': 100}, 'pallas'),
    (A100, {}, 'pallas'),
    (RTX_4090, {}, 'pallas'),
    (H100, {'attention': 'pallas'}, 'pallas'),
    (T4, {}, 'xla'),
    (MI300, {}, 'xla'),
    (APPLE, {}, 'xla'),
  ],
)
def test_training_takes_the_attention_whose_gradient_is_tested(
  model, device, edits, attention
):
  model = dataclasses.replace(model, **edits)
  found = backends.resolve_training(model, Mesh(device), 1024)
  assert (found.attention, found.loss_kernel) == (attention, 'xla')


def test_training_refuses_an_attention_that_does_not_run(model):
  for device, name in (
    *((CPU, 'cudnn'), (CPU, 'pallas'), (H100, 'splash')),
    *((TPU, 'cudnn'), (T4, 'pallas'), (MI300, 'pallas')),
  ):
    asked = dataclasses.replace(model, attention=name)
    with pytest.raises(UserError, match=f"'{name}' does not run here"):
      backends.resolve_training(asked, Mesh(device), 1024)


@pytest.mark.parametrize(
  'absent, devices',
  [
    ('hopper', (CPU, TPU, V4, A100, B200, MI300)),
    ('tpu', (CPU, V4, A100, H100)),
  ],
)
def test_kernels_of_another_device_are_not_needed(
  model, monkeypatch, absent, devices
):
  """Not even their modules, which JAX may change."""
  monkeypatch.setitem(sys.modules, f'infoprune_jax.model.{absent}', None)
  for device in devices:
    assert backends.resolve(model, Mesh(device), 8, 1024).loss_kernel != absent


@pytest.mark.parametrize('device', [TPU, H100])
def test_statistics_besides_nll_take_the_loss_of_xla(model, device):
  mesh, names = Mesh(device), ('nll', 'entropy')
  found = backends.resolve(model, mesh, 8, 1024, names)
  assert found.loss_kernel == 'xla'
  assert backends.resolve(model, mesh, 8, 1024).loss_kernel != 'xla'
  kernel = 'tpu' if device is TPU else 'hopper'
  named = dataclasses.replace(model, loss_kernel=kernel)
  with pytest.raises(UserError, match='NLL only, score.statistics .* entropy'):
    backends.resolve(named, mesh, 8, 1024, names)
