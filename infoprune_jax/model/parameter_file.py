"""A model's parameters in one safetensors file, with their metadata.

Names are paths of the network joined by dots, and values are float32. The
metadata hold the model's config and facts of its training, as JSON. Any reader
of safetensors can open the file.
"""

import json
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems

_FACTS = 'infoprune_jax'  # The key of our metadata.


def names_of(tree: Any) -> dict[str, Any]:
  """The leaves of a nested dict, by dotted path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def write(path: str, params: Any, facts: dict[str, Any]) -> None:
  """Writes parameters, to a temporary name until the file is complete.

  Args:
    path: The file, ending in .safetensors.
    params: A nested dict of float32 arrays.
    facts: A JSON object, which `read_facts` gives back.

  Raises:
    UserError: safetensors reads back other values; then no file is written.
  """
  # safetensors writes raw memory: transposed arrays must be copied first.
  arrays = {
    name: np.asarray(leaf, order='C') for name, leaf in names_of(params).items()
  }
  data = safetensors.numpy.save(arrays, {_FACTS: json.dumps(facts)})
  _check_written(path, data, arrays)
  files.write_file(path, lambda file: file.write(data))


def _check_written(
  path: str, data: bytes, arrays: dict[str, np.ndarray]
) -> None:
  """Raises `UserError` unless the bytes of a file give the arrays back."""
  written = safetensors.numpy.load(data)
  for name in sorted(arrays.keys() | written.keys()):
    if not _are_equal(written.get(name), arrays.get(name)):
      raise UserError(
        f'{path} was not written: safetensors {safetensors.__version__} reads '
        f'back other values of {name} than it was given. Install another '
        'version of safetensors, and run this again.'
      )


def _are_equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
  """Whether types, shapes and values are equal, in any byte order."""
  if one is None or other is None:
    return False
  types = {array.dtype.newbyteorder('=') for array in (one, other)}
  return len(types) == 1 and np.array_equal(one, other, equal_nan=True)


def read_facts(path: str) -> dict[str, Any]:
  """The facts that `write` stored with the parameters.

  Raises:
    UserError: there is no such file, or another program wrote it.
  """
  with _open(path) as opened:
    facts = (opened.metadata() or {}).get(_FACTS)
  if facts is None:
    raise UserError(
      f'{path} has no metadata of infoprune_jax: write it with '
      'tools/export_params.py.'
    )
  return json.loads(facts)


def load(path: str, abstract: Any) -> Any:
  """The parameters, spread over devices.

  Each process reads only the shards of its own devices.

  Args:
    path: The file.
    abstract: A nested dict of `jax.ShapeDtypeStruct` with shardings.

  Raises:
    UserError: the file holds other parameters, or of other shapes or dtypes.
  """
  with _open(path) as opened:
    # The object of safe_open is not a mapping.
    slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    check_shapes(
      path,
      {name: tuple(part.get_shape()) for name, part in slices.items()},
      abstract,
    )
    for name, part in slices.items():
      if part.get_dtype() != 'F32':
        raise UserError(
          f'{path} has {name} in {part.get_dtype()}, expected F32: write it '
          'with tools/export_params.py.'
        )

    def one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda index: slices[name][index]
      )

    return jax.tree_util.tree_map_with_path(one, abstract)


def check_shapes(
  path: str, shapes: dict[str, tuple[int, ...]], abstract: Any
) -> None:
  """Raises `UserError` unless a checkpoint holds arrays of these shapes.

  Args:
    path: The checkpoint, for the message.
    shapes: The shapes in the checkpoint, by dotted name.
    abstract: The expected shapes: a nested dict of values with a `shape`.
  """
  wanted = {
    name: tuple(leaf.shape) for name, leaf in names_of(abstract).items()
  }
  for name in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(name) != wanted.get(name):
      raise UserError(
        f'The checkpoint {path} has {_shaped(name, shapes)}, but the model of '
        f'this config has {_shaped(name, wanted)}: use the config that it was '
        'trained with.'
      )


def _shaped(name: str, shapes: dict[str, tuple[int, ...]]) -> str:
  return f'{name} of shape {shapes[name]}' if name in shapes else f'no {name}'


def _open(path: str) -> Any:
  try:
    return safetensors.safe_open(
      filesystems.local_copy(path), framework='numpy'
    )
  except (FileNotFoundError, safetensors.SafetensorError) as error:
    raise UserError(
      f'{path} is not a file of parameters ({error}): write one with '
      'tools/export_params.py.'
    ) from None
