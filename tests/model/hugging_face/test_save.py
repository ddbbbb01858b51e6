"""Folders that are written are the models that were given."""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import tarfile

import numpy as np
import pytest
from hugging_face_folders import load_folder, random_params
from made_vocabularies import byte_level, in_folder, opened

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import configs, describe, save
from infoprune_jax.model.parameter_file import names_of

GOLDEN = pathlib.Path('tests/golden/hugging_face.jsonl')
CONFIGS = {
  line['name']: line['config']
  for line in map(json.loads, GOLDEN.read_text().splitlines())
}
NATIVE = ModelConfig(
  num_layers=2,
  embed_dim=16,
  mlp_dim=24,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
)


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  special = {'bos_token': '<s>', 'eos_token': '</s>'}
  path = tmp_path_factory.mktemp('words')
  return opened(in_folder(path, byte_level(), tokenizer_config=special))


def nested(leaves):
  """Dotted names as a nested dict."""
  tree: dict = {}
  for name, leaf in leaves.items():
    *path, last = name.split('.')
    node = tree
    for key in path:
      node = node.setdefault(key, {})
    node[last] = leaf
  return tree


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('file_bytes', [save.FILE_BYTES, 30_000])
def test_what_is_written_reads_back_to_the_bit(
  name, file_bytes, words, tmp_path
):
  values = configs.text_config(CONFIGS[name], 'here')
  model, _ = configs.model_config(values, 'here')
  params = random_params(CONFIGS[name])
  save.save(str(tmp_path), model, nested(params), words, 512, file_bytes)
  files = list(tmp_path.glob('*.safetensors'))
  assert (len(files) > 3) == (file_bytes < save.FILE_BYTES)
  _, again, loaded = load_folder(tmp_path)
  assert again.model == dataclasses.replace(
    model, attention_scale=again.model.attention_scale
  )
  loaded = names_of(loaded)
  assert loaded.keys() == params.keys()
  for key, leaf in params.items():
    np.testing.assert_array_equal(np.asarray(loaded[key]), leaf, err_msg=key)


def test_a_folder_that_holds_something_is_refused(words, tmp_path):
  """An index of another model would name its weights."""
  (tmp_path / 'model.safetensors.index.json').write_text('{}')
  params = nested(random_params(CONFIGS['llama']))
  values = configs.text_config(CONFIGS['llama'], 'here')
  model, _ = configs.model_config(values, 'here')
  with pytest.raises(UserError, match='is not empty: name a new folder'):
    save.save(str(tmp_path), model, params, words, 512)
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  'edit, family',
  [
    ({}, 'llama'),
    ({'tie_embeddings': False}, 'llama'),
    ({'qk_norm': True}, 'qwen3'),
    ({'attention_bias': 'qkv'}, 'qwen2'),
  ],
)
def test_models_of_ours_are_of_a_family(edit, family):
  model = dataclasses.replace(NATIVE, **edit)
  values = describe.config_json(model, 100, 64)
  assert values['model_type'] == family
  assert configs.model_config(values, 'here') == (model, 100)


@pytest.mark.parametrize(
  'edit, named',
  [
    ({'logit_softcap': 30.0}, 'logit_softcap=30.0'),
    ({'activation': 'gelu'}, "activation='gelu'"),
  ],
)
def test_an_option_that_no_family_has_is_refused(edit, named):
  model = dataclasses.replace(NATIVE, **edit)
  with pytest.raises(UserError, match='No family .*') as error:
    describe.config_json(model, 100, 64)
  assert named in str(error.value)


def test_transformers_loads_what_the_tool_writes(tmp_path, monkeypatch, capsys):
  """A run of this program; the tool itself compares the two."""
  if not all(map(importlib.util.find_spec, ('torch', 'transformers'))):
    pytest.skip('needs torch and transformers')
  monkeypatch.syspath_prepend('tools')
  import export_hugging_face

  with tarfile.open('tests/golden_workdir.tar.xz') as archive:
    archive.extractall(tmp_path, filter='data')
  out = str(tmp_path / 'exported')
  run = str(tmp_path / 'workdir/reference')
  export_hugging_face.export(run, -1, out, '', 64)
  assert 'transformers gives the same NLL' in capsys.readouterr().out
  sys.modules.pop('export_hugging_face')
