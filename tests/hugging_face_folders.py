"""Folders of Hugging Face models, written without their libraries."""

import json
import pathlib

import jax
import ml_dtypes
import numpy as np

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import mesh as mesh_lib, network
from infoprune_jax.model.hugging_face import configs, load
from infoprune_jax.model.hugging_face.tensors import TENSORS
from infoprune_jax.model.parameter_file import names_of
from infoprune_jax.score import scorer

DTYPES = {
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
}
NOISE = 0.1


def random_params(values: dict) -> dict[str, np.ndarray]:
  """Our parameters of the model of a config.json, noise by their names."""
  model, vocab_size = configs.model_config(
    configs.text_config(values, 'here'), 'here'
  )
  params = {}
  for name, leaf in names_of(network.param_shapes(model, vocab_size)).items():
    rng = np.random.default_rng(list(name.encode()))
    noise = NOISE * rng.standard_normal(leaf.shape, np.float32)
    params[name] = noise + 1 if name.endswith('scale') else noise
  return params


def their_tensors(
  values: dict, params: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Parameters of ours as the tensors that Hugging Face saves."""
  text = configs.text_config(values, 'here')
  model, _ = configs.model_config(text, 'here')
  tensors = {}
  for tensor in TENSORS[text['model_type']]():
    if not params.keys() >= set(tensor.params):
      continue
    own = [params[name] for name in tensor.params]
    if tensor.is_stacked:
      for layer in range(model.num_layers):
        joined = tensor.form.join([param[layer] for param in own], model)
        tensors[tensor.name.format(layer)] = joined
    else:
      tensors[tensor.name] = tensor.form.join(own, model)
  return tensors


def write_safetensors(
  path: pathlib.Path, tensors: dict[str, np.ndarray], dtype: str = 'F32'
) -> None:
  """One file, as the format is documented."""
  header, blobs, start = {'__metadata__': {'format': 'pt'}}, [], 0
  for name, values in tensors.items():
    blobs.append(np.asarray(values, DTYPES[dtype], order='C').tobytes())
    stop = start + len(blobs[-1])
    header[name] = {
      'dtype': dtype,
      'shape': list(values.shape),
      'data_offsets': [start, stop],
    }
    start = stop
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + b''.join(blobs))


def write_folder(
  path: pathlib.Path,
  values: dict,
  tensors: dict[str, np.ndarray],
  num_files: int = 1,
  dtype: str = 'F32',
) -> None:
  """A folder as `save_pretrained` writes it."""
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(values))
  if num_files == 1:
    write_safetensors(path / 'model.safetensors', tensors, dtype)
    return
  weight_map = {}
  for number in range(num_files):
    file = f'model-{number + 1:05}-of-{num_files:05}.safetensors'
    own = dict(list(tensors.items())[number::num_files])
    write_safetensors(path / file, own, dtype)
    weight_map |= dict.fromkeys(own, file)
  index = {'metadata': {}, 'weight_map': weight_map}
  (path / 'model.safetensors.index.json').write_text(json.dumps(index))


def load_folder(
  path: pathlib.Path, fsdp: int = 1
) -> tuple[mesh_lib.Mesh, load.ImportedModel, dict]:
  """The model of a folder, on devices of this process."""
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=fsdp, tensor=1), jax.devices()[:fsdp]
  )
  opened = load.open_model(str(path))
  abstract = scorer.abstract_params(opened.model, opened.vocab_size, mesh)
  return mesh, opened, load.load(opened, abstract)
