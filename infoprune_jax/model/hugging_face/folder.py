"""The tensors in a folder of safetensors files, read one at a time.

Files are read in ranges. They are not mapped into memory, so that pages that
were read do not count as memory of the process. An object store sends only the
ranges that are read.
"""

import dataclasses
import json
import math
import posixpath
from typing import Any

import jax.numpy as jnp
import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems

CONFIG_FILE = 'config.json'
SINGLE_FILE = 'model.safetensors'
INDEX_FILE = f'{SINGLE_FILE}.index.json'
DTYPES: dict[str, Any] = {
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(jnp.bfloat16),
}
PICKLES = ('.bin', '.pt', '.pth', '.ckpt')
MAX_HEADER = 100 << 20  # bytes, as safetensors itself allows


@dataclasses.dataclass(frozen=True)
class _Place:
  """The place of a tensor in a file."""

  file: str
  dtype: str
  shape: tuple[int, ...]
  start: int  # bytes from the start of the file


@dataclasses.dataclass(frozen=True)
class TensorFolder:
  """The tensors of a model, by their names."""

  path: str
  places: dict[str, _Place]

  @property
  def names(self) -> list[str]:
    """The names of all tensors."""
    return list(self.places)

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor."""
    return self.places[name].shape

  def read(self, name: str) -> np.ndarray:
    """A tensor, as float32."""
    place = self.places[name]
    dtype = DTYPES[place.dtype]
    size = math.prod(place.shape) * dtype.itemsize
    data = _read_range(place.file, place.start, size)
    values = np.frombuffer(data, dtype).reshape(place.shape)
    return values.astype(np.float32, copy=False)


def read_json(path: str, folder: str) -> dict[str, Any]:
  """The object in a JSON file of a model.

  Raises:
    UserError: there is no such file, or it is no JSON object.
  """
  try:
    value = json.loads(files.read_bytes(path))
  except FileNotFoundError:
    raise UserError(
      f'{folder} has no {posixpath.basename(path)}: give the folder of a model '
      'of Hugging Face.'
    ) from None
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}.') from None
  if not isinstance(value, dict):
    raise UserError(f'{path} is not a JSON object.')
  return value


def open_folder(path: str) -> TensorFolder:
  """Reads the headers of all files of a model.

  Raises:
    UserError: a file is missing or truncated, the dtype of a tensor is not
      supported, or the weights are in pickles.
  """
  filesystem, name = filesystems.filesystem_of(path)
  if filesystem.exists(posixpath.join(name, INDEX_FILE)):
    file = posixpath.join(path, INDEX_FILE)
    index = read_json(file, path).get('weight_map')
    if not isinstance(index, dict):
      raise UserError(f'{file} has no weight_map: download it again.')
    shards = sorted(set(index.values()))
  else:
    index, shards = {}, [SINGLE_FILE]
  places: dict[str, _Place] = {}
  for shard in shards:
    if not filesystem.exists(posixpath.join(name, shard)):
      raise UserError(_missing(path, shard, len(shards)))
    places.update(_read_header(posixpath.join(path, shard)))
  lost = sorted(index.keys() - places.keys())
  if lost:
    raise UserError(
      f'{path}: {INDEX_FILE} names {lost[0]} in {index[lost[0]]}, which does '
      'not hold it: download both again.'
    )
  return TensorFolder(path, places)


def _missing(path: str, shard: str, num_shards: int) -> str:
  names = filesystems.names_in(path)
  pickles = sorted(name for name in names if name.endswith(PICKLES))
  if pickles and num_shards == 1:
    return (
      f'{path} holds its weights in {pickles[0]}, a pickle. A pickle can run any '
      'program when it is opened, so it is not read here. Save the model again '
      'as safetensors, with save_pretrained of transformers.'
    )
  return f'{path} has no {shard}, 1 of {num_shards} files of weights.'


def _read_range(file: str, start: int, size: int) -> bytes:
  filesystem, name = filesystems.filesystem_of(file)
  return filesystem.cat_file(name, start, start + size)


def _read_header(file: str) -> dict[str, _Place]:
  """The tensors in one file, by name.

  In the format safetensors, eight bytes hold the length of the header. The
  header is a JSON object of dtype, shape, and offsets of each tensor, which
  count from the end of the header.
  """
  filesystem, name = filesystems.filesystem_of(file)
  size = filesystem.size(name)
  length = int.from_bytes(_read_range(file, 0, min(8, size)), 'little')
  first = 8 + length
  if size < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
    raise UserError(f'{file} is no safetensors file, or truncated.')
  try:
    header = json.loads(_read_range(file, 8, length))
  except ValueError as error:
    raise UserError(f'{file} is no safetensors file: {error}.') from None
  if not isinstance(header, dict):
    raise UserError(f'{file} is no safetensors file: its header is no object.')
  header.pop('__metadata__', None)
  places = {}
  end = first
  for name, tensor in header.items():
    dtype, shape = tensor['dtype'], tuple(tensor['shape'])
    if dtype not in DTYPES:
      raise UserError(
        f'{file}: tensor {name} is of dtype {dtype}, expected one of '
        f'{", ".join(DTYPES)}. Quantised safetensors are not supported.'
      )
    start, stop = tensor['data_offsets']
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
      raise UserError(f'{file}: the offsets of {name} do not fit its shape.')
    places[name] = _Place(file, dtype, shape, first + start)
    end = max(end, first + stop)
  if end != size:
    raise UserError(
      f'{file} has {size} bytes, expected {end}: it is truncated. Download it '
      'again.'
    )
  return places
