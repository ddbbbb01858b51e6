"""A model's parameters in one file, by safetensors, with what they are.

Names are paths of the network joined by dots, values float32; the metadata
hold the model's config and what training it took, as JSON. Any reader of
safetensors opens it.
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
  """Writes parameters, under another name until all of them are there.

  Args:
    path: The file, ending in .safetensors.
    params: A nested dict of float32 arrays.
    facts: A JSON object, which `read_facts` gives back.

  Raises:
    UserError: safetensors gives back other values; nothing is written then.
  """
  # It writes memory as it lies: a transposed array would come out scrambled.
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
        f'{path} was not written: safetensors {safetensors.__version__} gives '
        f'back another {name} than it was given. Install another version of '
        'safetensors, and run this again.'
      )


def _are_equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
  """Whether two arrays are of one type, shape and content, in any byte order."""
  if one is None or other is None:
    return False
  types = {array.dtype.newbyteorder('=') for array in (one, other)}
  return len(types) == 1 and np.array_equal(one, other, equal_nan=True)


def read_facts(path: str) -> dict[str, Any]:
  """What `write` was told of the parameters.

  Raises:
    UserError: there is no such file, or another program wrote it.
  """
  with _open(path) as opened:
    facts = (opened.metadata() or {}).get(_FACTS)
  if facts is None:
    raise UserError(
      f'{path} does not say which model its parameters are of: write it with '
      'tools/export_params.py.'
    )
  return json.loads(facts)


def load(path: str, abstract: Any) -> Any:
  """The parameters, spread over devices.

  Each process reads the shards of its own devices alone.

  Args:
    path: The file.
    abstract: A nested dict of `jax.ShapeDtypeStruct` with shardings.

  Raises:
    UserError: the file holds other parameters, or of other shapes or dtypes.
  """
  with _open(path) as opened:
    # Offset keys are no part of the mapping that safe_open gives.
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
    path: Of the checkpoint, for the message.
    shapes: The shapes that it holds, by dotted name.
    abstract: A nested dict of whatever has a `shape`: those expected.
  """
  wanted = {
    name: tuple(leaf.shape) for name, leaf in names_of(abstract).items()
  }
  for name in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(name) != wanted.get(name):
      raise UserError(
        f'The checkpoint {path} has {_shaped(name, shapes)}, the model of this '
        f'config {_shaped(name, wanted)}: give the config that it was trained '
        'with.'
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
      f'{path} is no file of parameters ({error}): write one with '
      'tools/export_params.py.'
    ) from None
