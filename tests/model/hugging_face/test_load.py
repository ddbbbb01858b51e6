"""Folders of models: what is read is what was written; the rest is refused."""

import json

import jax
import numpy as np
import pytest
from hugging_face_folders import (
  load_folder,
  random_params,
  their_tensors,
  write_folder,
  write_safetensors,
)
from hugging_face_models import SHAPE

from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import configs, load
from infoprune_jax.model.parameter_file import names_of

SMALL = {**SHAPE, 'vocab_size': 20, 'hidden_size': 32, 'head_dim': 8}
LLAMA = {'model_type': 'llama', 'hidden_act': 'silu', **SMALL}
GPT2 = {
  'model_type': 'gpt2',
  'vocab_size': 20,
  'n_embd': 32,
  'n_layer': 2,
  'n_head': 4,
  'n_positions': 16,
  'activation_function': 'gelu_new',
}
BIASED = {**LLAMA, 'attention_bias': True, 'mlp_bias': True}
# Every form of tensor: with biases, and with fused ones.
FAMILIES = {
  **{name: {**LLAMA, 'model_type': name} for name in configs.FAMILIES},
  'llama': BIASED,
  'gpt2': GPT2,
  'gpt_neox': {**LLAMA, 'model_type': 'gpt_neox', 'hidden_act': 'gelu'},
}
SHARD = 'model-00002-of-00003.safetensors'


def written(path, values=LLAMA, **how):
  params = random_params(values)
  write_folder(path, values, their_tensors(values, params), **how)
  return params


def assert_equal(found, expected):
  found = names_of(found)
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize('family', configs.FAMILIES)
def test_every_parameter_comes_back(family, tmp_path):
  params = written(tmp_path, FAMILIES[family])
  if 'gemma' in family:  # Their norms lack 1, which rounds.
    params = {
      name: values - np.float32(1) + np.float32(1)
      if name.endswith('scale')
      else values
      for name, values in params.items()
    }
  assert_equal(load_folder(tmp_path)[2], params)


@pytest.mark.parametrize('fsdp', [1, 4])
@pytest.mark.parametrize('num_files', [1, 3])
def test_files_and_devices_do_not_matter(num_files, fsdp, tmp_path):
  params = written(tmp_path, BIASED, num_files=num_files)
  found = load_folder(tmp_path, fsdp)[2]
  assert_equal(found, params)
  spread = names_of(found)['layers.mlp.up'].sharding
  assert len(spread.device_set) == fsdp


@pytest.mark.parametrize('dtype', ['F16', 'BF16'])
def test_other_dtypes_are_read_as_float32(dtype, tmp_path):
  params = written(tmp_path, dtype=dtype)
  kind = {'F16': np.float16, 'BF16': jax.numpy.bfloat16}[dtype]
  rounded = {name: x.astype(kind).astype('f4') for name, x in params.items()}
  assert_equal(load_folder(tmp_path)[2], rounded)


def test_other_names_and_buffers_are_known(tmp_path):
  """As of the files of GPT-2 that the Hub has."""
  params = random_params(GPT2)
  tensors = {
    name.removeprefix('transformer.'): values
    for name, values in their_tensors(GPT2, params).items()
  }
  tensors['h.0.attn.bias'] = np.ones((1, 1, 16, 16), np.float32)
  write_folder(tmp_path, GPT2, tensors)
  assert_equal(load_folder(tmp_path)[2], params)


def test_the_text_part_of_a_model_with_images_is_loaded(tmp_path):
  text = {**FAMILIES['gemma3_text'], 'tie_word_embeddings': True}
  params = random_params(text)
  tensors = {
    f'language_model.{name}': values
    for name, values in their_tensors(text, params).items()
  }
  tensors['vision_tower.patch.weight'] = np.ones(3, np.float32)
  values = {'model_type': 'gemma3', 'text_config': text, 'vision_config': {}}
  write_folder(tmp_path, values, tensors)
  found = names_of(load_folder(tmp_path)[2])
  for name, expected in params.items():
    np.testing.assert_allclose(found[name], expected, atol=1e-6)


def test_the_fingerprint_is_that_of_config_and_weights(tmp_path):
  written(tmp_path, num_files=3)
  path = str(tmp_path)
  first = load.fingerprint(path)
  (tmp_path / 'README.md').write_text('Another text.')
  (tmp_path / 'of-another-format.safetensors').write_bytes(b'weights')
  assert load.fingerprint(path) == first
  data = bytearray((tmp_path / SHARD).read_bytes())
  data[-1] ^= 1
  (tmp_path / SHARD).write_bytes(data)
  second = load.fingerprint(path)
  (tmp_path / 'config.json').write_text(json.dumps({**LLAMA, 'a': 0}))
  assert len({first, second, load.fingerprint(path)}) == 3


def without(*names):
  return lambda tensors: {k: x for k, x in tensors.items() if k not in names}


def replaced(name, values):
  return lambda tensors: {**tensors, name: values}


QUERY = 'model.layers.1.self_attn.q_proj.weight'


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (without(QUERY), f'no tensor {QUERY}, one of 1'),
    (without('model.norm.weight', 'lm_head.weight'), 'one of 2'),
    (replaced('model.layers.2.odd', np.ones(1)), 'tensor model.layers.2.odd'),
    (
      replaced('model.layers.0.self_attn.q_proj.bias', np.ones(32)),
      'q_proj.bias',
    ),
    (replaced(QUERY, np.ones((32, 16))), f'{QUERY} has the shape (32, 16)'),
    (replaced(QUERY, np.ones((16, 64))), f'{QUERY} has the shape (16, 64)'),
    (
      replaced('model.embed_tokens.weight', np.ones((21, 32))),
      'embed_tokens.weight has the shape (21, 32)',
    ),
  ],
)
def test_other_tensors_than_the_config_asks_for_are_refused(
  change, words, tmp_path
):
  tensors = change(their_tensors(LLAMA, random_params(LLAMA)))
  write_folder(tmp_path, LLAMA, tensors)
  with pytest.raises(UserError) as error:
    load_folder(tmp_path)
  assert words in str(error.value)
  assert str(tmp_path) in str(error.value)


def rewrite(path, edit):
  path.write_bytes(edit(path.read_bytes()))


def only_pickles(path):
  for file in path.glob('*.safetensors*'):
    file.unlink()
  (path / 'pytorch_model.bin').write_bytes(b'')


def weights(path, dtype):
  write_safetensors(path / SHARD, {'a': np.ones(2)}, dtype)


@pytest.mark.parametrize(
  ('damage', 'words'),
  [
    (lambda path: (path / SHARD).unlink(), f'no {SHARD}'),
    (lambda path: rewrite(path / SHARD, lambda d: d[:-1]), 'truncated'),
    (lambda path: rewrite(path / SHARD, lambda d: d[:40]), 'truncated'),
    (lambda path: rewrite(path / SHARD, lambda d: b''), 'truncated'),
    (lambda path: rewrite(path / SHARD, lambda d: b'x' * 99), 'truncated'),
    (
      lambda path: rewrite(path / SHARD, lambda d: d[:8] + b'x' + d[9:]),
      'no safetensors file',
    ),
    (lambda path: weights(path, 'I64'), 'dtype I64, expected one of F32'),
    (lambda path: weights(path, 'F32'), 'which does not hold it'),
    (lambda path: (path / 'config.json').unlink(), 'config.json'),
    (lambda path: rewrite(path / 'config.json', lambda d: d[:-1]), 'not JSON'),
    (lambda path: rewrite(path / 'config.json', lambda d: b'[]'), 'object'),
    (
      lambda path: rewrite(
        path / 'model.safetensors.index.json', lambda d: b'{}'
      ),
      'weight_map',
    ),
    (only_pickles, 'run any program'),
  ],
)
def test_damaged_folders_are_refused(damage, words, tmp_path):
  written(tmp_path, num_files=3)
  damage(tmp_path)
  with pytest.raises(UserError) as error:
    load.open_model(str(tmp_path))
  assert words in str(error.value)
  assert str(tmp_path) in str(error.value)
