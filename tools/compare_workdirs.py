r"""Compares the results in two workdirs, value by value.

  python tools/compare_workdirs.py runs/before runs/after [--renames=FILE.json]

Compared, bit for bit: tables (Parquet), arrays (.npy), vocabularies, training
metrics, and every array of every checkpoint. Not compared: times, fingerprints,
locks, and pages. The exit code is 0 if all results are equal, otherwise 1.

If names changed between two versions, give a file of renames:

  {"paths": {"^token_store/": "tokens/"}, "names": {"row": "doc_index"}}

`paths` are regular expressions, replaced in paths below OLD; `names` are
columns of tables, keys of metrics, and names of parameters in OLD.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow as pa
import pyarrow.parquet as pq

MODELS = ('sentencepiece.model', 'tokenizer.json')


@dataclasses.dataclass(frozen=True)
class Renames:
  """The names in NEW for names in OLD."""

  paths: Mapping[str, str]
  names: Mapping[str, str]

  def path(self, path: str) -> str:
    """A path below OLD, as it is below NEW."""
    for pattern, replacement in self.paths.items():
      path = re.sub(pattern, replacement, path)
    return path

  def name(self, name: str) -> str:
    """A column, key or dotted parameter of OLD, as it is called in NEW."""
    return '.'.join(self.names.get(part, part) for part in name.split('.'))


Columns = dict[str, Any]  # Names and values: numpy arrays, or lists.


def read_table(path: pathlib.Path) -> Columns:
  """The columns of a Parquet file."""
  table = pq.read_table(path)
  columns = {}
  for name, column in zip(table.column_names, table.columns, strict=True):
    if pa.types.is_dictionary(column.type):
      column = column.cast(column.type.value_type)
    columns[name] = column.to_pylist()
  return columns


def read_metrics(path: pathlib.Path) -> Columns:
  """Each line's values, by step and key."""
  lines = map(json.loads, path.read_text().splitlines())
  return {
    f'{key}.{line["step"]}': value
    for line in lines
    for key, value in line.items()
  }


def read_checkpoint(path: pathlib.Path) -> Columns:
  """The arrays of one item of a checkpoint, by dotted name."""
  folder = path.parent.absolute()
  checkpointer = ocp.PyTreeCheckpointer()
  # As arrays of numpy: the devices that wrote them may be of several hosts.
  arguments = jax.tree.map(
    lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
    checkpointer.metadata(folder).item_metadata.tree,
  )
  tree = checkpointer.restore(folder, restore_args=arguments)
  return dict(_leaves(tree, ()))


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
  if isinstance(tree, Mapping):
    for key, value in tree.items():
      yield from _leaves(value, (*path, str(key)))
  elif isinstance(tree, list | tuple):
    for number, value in enumerate(tree):
      yield from _leaves(value, (*path, str(number)))
  elif tree is not None:
    yield '.'.join(path), np.asarray(tree)


# What holds a result, by its file name; `_METADATA` stands for its checkpoint.
READERS: Mapping[str, Callable[[pathlib.Path], Columns]] = {
  r'.*\.parquet': read_table,
  r'.*\.npy': lambda path: {'array': np.load(path)},
  r'metrics\.jsonl': read_metrics,
  r'_METADATA': read_checkpoint,
  **{
    re.escape(name): lambda path: {'bytes': path.read_bytes()}
    for name in MODELS
  },
}


def results(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """The files with results below a workdir, by relative path."""
  return {
    str(path.relative_to(workdir)): path
    for path in sorted(workdir.rglob('*'))
    if any(re.fullmatch(pattern, path.name) for pattern in READERS)
  }


def read(path: pathlib.Path) -> Columns:
  """The values of one file, by name."""
  [reader] = [f for p, f in READERS.items() if re.fullmatch(p, path.name)]
  return reader(path)


def same(old: Any, new: Any) -> bool:
  """Whether two values are equal bit for bit, NaN included."""
  if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
    return (
      old.dtype == new.dtype
      and old.shape == new.shape
      and old.tobytes() == new.tobytes()
    )
  return repr(old) == repr(new)  # Of floats, as exact as their bits.


def difference(old: Columns, new: Columns, renames: Renames) -> str:
  """The first name whose values differ; '' for none."""
  renamed = {renames.name(name): value for name, value in old.items()}
  for name in sorted(renamed.keys() | new.keys()):
    if name not in renamed or name not in new:
      return f'{name} is only in {"NEW" if name in new else "OLD"}'
    if not same(renamed[name], new[name]):
      return f'{name} differs'
  return ''


def compare(
  old: pathlib.Path, new: pathlib.Path, renames: Renames
) -> dict[str, str]:
  """The first difference of each file, by path in NEW; '' if equal."""
  before = {renames.path(name): path for name, path in results(old).items()}
  after = results(new)
  differences = {}
  for name in sorted(before.keys() | after.keys()):
    if name not in before or name not in after:
      side = 'NEW' if name in after else 'OLD'
      differences[name] = f'the file is only in {side}'
    else:
      differences[name] = difference(
        read(before[name]), read(after[name]), renames
      )
  return differences


def main() -> int:
  """Returns the exit code."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('old', type=pathlib.Path)
  parser.add_argument('new', type=pathlib.Path)
  parser.add_argument('--renames', type=pathlib.Path)
  arguments = parser.parse_args()
  given = json.loads(arguments.renames.read_text()) if arguments.renames else {}
  renames = Renames(given.get('paths', {}), given.get('names', {}))
  differences = compare(arguments.old, arguments.new, renames)
  if not differences:
    print(f'{arguments.old} and {arguments.new} hold no results.')
    return 1
  for name, text in differences.items():
    print(f'{"different" if text else "equal":9}  {name}  {text}'.rstrip())
  count = sum(map(bool, differences.values()))
  print(f'{len(differences) - count} files equal, {count} different')
  return int(count > 0)


if __name__ == '__main__':
  sys.exit(main())
