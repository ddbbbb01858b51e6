"""Imports a model of Hugging Face, tensor by tensor, into sharded arrays."""

import dataclasses
import functools
import hashlib
import json
import posixpath
from typing import Any, Protocol

import jax
import numpy as np

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import configs, folder, gguf_model
from infoprune_jax.model.hugging_face.tensors import (
  ALIASES,
  BUFFERS,
  OTHER_PARTS,
  TENSORS,
  Tensor,
)
from infoprune_jax.model.parameter_file import names_of
from infoprune_jax.runtime import files, filesystems
from infoprune_jax.tokens import gguf_file


class Source(Protocol):
  """Tensors by the names that Hugging Face gives them."""

  @property
  def names(self) -> list[str]:
    """The names of all tensors."""
    ...

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor."""
    ...

  def read(self, name: str) -> np.ndarray:
    """A tensor as float32."""
    ...


@dataclasses.dataclass(frozen=True)
class ImportedModel:
  """A model whose config is read, and whose tensors are not."""

  path: str
  model: ModelConfig
  vocab_size: int  # of the embedding: at least that of the tokenizer
  family: str  # a key of `configs.FAMILIES`
  source: Source = dataclasses.field(repr=False)


def is_imported(path: str) -> bool:
  """Whether a path is a GGUF file, or a folder of a Hugging Face model."""
  if path.endswith(gguf_file.EXTENSION):
    return True
  filesystem, name = filesystems.filesystem_of(path)
  return filesystem.exists(posixpath.join(name, folder.CONFIG_FILE))


def open_model(path: str) -> ImportedModel:
  """Reads the config of a model, and the names and shapes of its tensors.

  Args:
    path: A folder with config.json and safetensors, or a GGUF file.

  Raises:
    UserError: a file is missing or damaged, or the family or an option is not
      supported.
  """
  source: Source
  if path.endswith(gguf_file.EXTENSION):
    where = path
    values, source = gguf_model.open_model(path)
  else:
    where = posixpath.join(path, folder.CONFIG_FILE)
    values = configs.text_config(folder.read_json(where, path), where)
    source = folder.open_folder(path)
  model, vocab_size = configs.model_config(values, where)
  return ImportedModel(path, model, vocab_size, values['model_type'], source)


def fingerprint(path: str) -> str:
  """A digest of config.json and all weights. It reads these files."""
  if path.endswith(gguf_file.EXTENSION):
    paths = [path]
  else:
    places = folder.open_folder(path).places.values()
    shards = sorted({place.file for place in places})
    paths = [posixpath.join(path, folder.CONFIG_FILE), *shards]
  digests = []
  for file in paths:
    filesystem, name = filesystems.filesystem_of(file)
    digests.append(_sha256(file, filesystem.ukey(name)))
  return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1024)  # Each arm and seed asks for it.
def _sha256(file: str, version: str) -> str:
  """The digest of a file. A changed file has another `version`."""
  del version
  return files.facts_of(filesystems.local_copy(file))['sha256']


def load(imported: ImportedModel, abstract: Any) -> Any:
  """Loads the parameters, sharded over devices.

  Besides the finished arrays, this process holds one tensor, and its shards of
  the parameters in this tensor, of all layers.

  Args:
    imported: The model.
    abstract: A nested dict of `jax.ShapeDtypeStruct` with shardings, float32.

  Raises:
    UserError: a tensor is missing, of another shape, or not expected.
  """
  leaves = names_of(abstract)
  names = _check_names(imported, leaves)
  arrays: dict[str, jax.Array] = {}
  for tensor in TENSORS[imported.family]():
    if leaves.keys() >= set(tensor.params):
      arrays.update(_load_tensor(imported, tensor, names, leaves))
  paths, structure = jax.tree_util.tree_flatten_with_path(abstract)
  ordered = [
    arrays[jax.tree_util.keystr(path, simple=True, separator='.')]
    for path, _ in paths
  ]
  return jax.tree_util.tree_unflatten(structure, ordered)


def _check_names(
  imported: ImportedModel, leaves: dict[str, Any]
) -> dict[str, str]:
  """The name in the source of each tensor to load.

  Raises:
    UserError: a tensor is missing, has another shape, or is left over.
  """
  known, expected = _known_tensors(imported, leaves)
  given = {
    _canonical(name, imported.family, known): name
    for name in imported.source.names
  }
  missing = [name for name in expected if name not in given]
  if missing:
    raise UserError(
      f'{imported.path} has no tensor {missing[0]}, one of {len(missing)} '
      'missing ones that its config needs.'
    )
  tied = {'lm_head.weight', 'embed_out.weight'} - expected.keys()
  left_over = [
    name
    for canonical, name in given.items()
    if canonical not in expected.keys() | tied
    and not name.endswith(BUFFERS)
    and not name.removeprefix('model.').startswith(OTHER_PARTS)
  ]
  if left_over:
    raise UserError(
      f'{imported.path} has a tensor {left_over[0]}, one of {len(left_over)} '
      f'that a {imported.family} model with this config does not use. Without '
      'it, another model would be computed.'
    )
  for name, expected_shape in expected.items():
    shape = imported.source.shape(given[name])
    if shape != expected_shape:
      raise UserError(
        f'{imported.path}: tensor {given[name]} has the shape {shape}, but its '
        f'config needs {expected_shape}. They are not of one model: download '
        'both again.'
      )
  return {name: given[name] for name in expected}


def _known_tensors(
  imported: ImportedModel, leaves: dict[str, Any]
) -> tuple[set[str], dict[str, tuple[int, ...]]]:
  """The tensors of the family, and the shapes of those that this model has."""
  known: set[str] = set()
  expected: dict[str, tuple[int, ...]] = {}
  for tensor in TENSORS[imported.family]():
    layers = imported.model.num_layers if tensor.is_stacked else 1
    names = [tensor.name.format(layer) for layer in range(layers)]
    known.update(names)
    if leaves.keys() >= set(tensor.params):
      params = [leaves[p].shape[tensor.is_stacked :] for p in tensor.params]
      shape = tensor.shape(params, imported.model)
      expected.update(dict.fromkeys(names, shape))
  return known, expected


def _canonical(name: str, family: str, known: set[str]) -> str:
  """The name of a tensor in `TENSORS`, for one of its other names."""
  for old, new in ALIASES.get(family, ()):
    other = new + name.removeprefix(old)
    if name not in known and name.startswith(old) and other in known:
      return other
  return name


def _load_tensor(
  imported: ImportedModel,
  tensor: Tensor,
  names: dict[str, str],
  leaves: dict[str, Any],
) -> dict[str, jax.Array]:
  """The arrays of the parameters in a tensor, of all layers."""
  shards = {param: _Shards(leaves[param]) for param in tensor.params}
  layers = imported.model.num_layers if tensor.is_stacked else 1
  for layer in range(layers):
    values = imported.source.read(names[tensor.name.format(layer)])
    parts = tensor.form.split(values, imported.model)
    for param, part in zip(tensor.params, parts, strict=True):
      shards[param].fill((layer,) if tensor.is_stacked else (), part)
  return {param: shards[param].array() for param in tensor.params}


class _Shards:
  """The shards of one array on the devices of this process."""

  def __init__(self, leaf: jax.ShapeDtypeStruct):
    self._leaf = leaf
    # Start and stop along each axis, by device. Devices with the same bounds
    # share a buffer.
    indices: Any = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    self._bounds = {
      device: tuple(
        part.indices(size)[:2]
        for part, size in zip(index, leaf.shape, strict=True)
      )
      for device, index in indices.items()
    }
    self._buffers = {
      bounds: np.empty([stop - start for start, stop in bounds], leaf.dtype)
      for bounds in self._bounds.values()
    }

  def fill(self, where: tuple[int, ...], values: np.ndarray) -> None:
    """Copies the values of a parameter, or of one layer of it.

    The axis of layers is never sharded.
    """
    for bounds, buffer in self._buffers.items():
      buffer[where] = values[tuple(slice(*b) for b in bounds[len(where) :])]

  def array(self) -> jax.Array:
    """The array over all devices."""
    shards = [
      jax.device_put(self._buffers[bounds], device)
      for device, bounds in self._bounds.items()
    ]
    return jax.make_array_from_single_device_arrays(
      self._leaf.shape, self._leaf.sharding, shards
    )
