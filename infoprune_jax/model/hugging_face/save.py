"""Writes a model as a folder that transformers loads."""

import posixpath
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import describe
from infoprune_jax.model.hugging_face.folder import (
  CONFIG_FILE,
  INDEX_FILE,
  SINGLE_FILE,
)
from infoprune_jax.model.hugging_face.tensors import TENSORS
from infoprune_jax.model.parameter_file import names_of
from infoprune_jax.runtime import files, filesystems
from infoprune_jax.tokens import tokenizer_json
from infoprune_jax.tokens.vocabulary import Vocabulary

FILE_BYTES = 4 << 30  # the most bytes of a file, unless one tensor is larger


def save(
  path: str,
  model: ModelConfig,
  params: Any,
  words: Vocabulary,
  max_length: int,
  file_bytes: int = FILE_BYTES,
) -> None:
  """Writes config.json, safetensors in float32, and the tokenizer.

  Args:
    path: The folder.
    model: The model.
    params: Its parameters, a nested dict of float32 arrays that are whole on
      this process.
    words: The vocabulary.
    max_length: The most tokens of a sequence, for config.json.
    file_bytes: The most bytes of one file of weights.

  Raises:
    UserError: the folder is not empty, no family computes the same as the model,
      or the library `tokenizers` cannot hold the vocabulary.
  """
  leaves = names_of(params)
  values = describe.config_json(model, leaves['embedding'].shape[0], max_length)
  values |= {'bos_token_id': words.bos_id, 'eos_token_id': words.eos_id}
  tokenizer = tokenizer_json.files_of(words)
  # A file of another model there would be read as part of this one.
  filesystem, name = filesystems.filesystem_of(path)
  if filesystem.exists(name) and filesystem.ls(name):
    raise UserError(f'{path} is not empty: name a new folder, or delete it.')
  filesystems.make_folder(path)
  _write_weights(path, values['model_type'], model, leaves, file_bytes)
  for name, content in tokenizer.items():
    files.write_text(posixpath.join(path, name), content)
  # Written last: without it, a folder is no model.
  files.write_json(posixpath.join(path, CONFIG_FILE), values)


def _write_weights(
  path: str,
  family: str,
  model: ModelConfig,
  leaves: dict[str, Any],
  file_bytes: int,
) -> None:
  """Writes the weights to one file, or to several with an index."""
  weight_map: dict[str, str] = {}
  if 4 * sum(leaf.size for leaf in leaves.values()) <= file_bytes:
    _write_file(path, SINGLE_FILE, dict(_tensors(family, model, leaves)))
    return
  batch: dict[str, np.ndarray] = {}
  for name, values in _tensors(family, model, leaves):
    held = sum(other.nbytes for other in batch.values())
    if batch and held + values.nbytes > file_bytes:
      weight_map |= _write_next(path, batch, weight_map)
      batch = {}
    batch[name] = values
  weight_map |= _write_next(path, batch, weight_map)
  index = {'metadata': {}, 'weight_map': weight_map}
  files.write_json(posixpath.join(path, INDEX_FILE), index)


def _write_next(
  path: str, batch: dict[str, np.ndarray], weight_map: dict[str, str]
) -> dict[str, str]:
  """Writes one more file, and returns its name for each of its tensors."""
  name = f'model-{len(set(weight_map.values())) + 1:05}.safetensors'
  _write_file(path, name, batch)
  return dict.fromkeys(batch, name)


def _write_file(path: str, name: str, tensors: dict[str, np.ndarray]) -> None:
  data = safetensors.numpy.save(tensors, {'format': 'pt'})
  files.write_file(posixpath.join(path, name), lambda file: file.write(data))


def _tensors(
  family: str, model: ModelConfig, leaves: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """Names and values of the tensors of Hugging Face, one at a time."""
  for tensor in TENSORS[family]():
    if not leaves.keys() >= set(tensor.params):
      continue
    own = [np.asarray(leaves[name]) for name in tensor.params]
    layers = range(model.num_layers) if tensor.is_stacked else [None]
    for layer in layers:
      parts = own if layer is None else [param[layer] for param in own]
      joined = tensor.form.join(parts, model)
      # safetensors writes the memory of an array, whatever its strides.
      yield tensor.name.format(layer), np.ascontiguousarray(joined, np.float32)
