"""TFDS datasets that are prepared on disk: a unit is a shard of the split."""

import difflib
import functools
import glob
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow, records
from infoprune_jax.corpus.records import Document, InputFile, Records
from infoprune_jax.runtime import filesystems

INFO = 'dataset_info.json'  # In the folder of a prepared dataset.


def list_units(
  source: str, config: SourceConfig, warnings: list[str]
) -> list[InputFile]:
  """The shards of a source's datasets, in order; nothing is downloaded.

  Raises:
    UserError: a dataset is unknown or not prepared, or has no such split or
      column.
  """
  del warnings  # There is nothing to warn of.
  field = f'corpus.sources.{source}'
  units = []
  for path in config.paths:
    builder = open_builder(field, path, config.data_dir)
    for name in records.wanted_columns(config):
      if not _keys(builder.info.features, name):
        raise UserError(
          f'{field}: {path!r} has no feature {name!r}; features are '
          f'{", ".join(_names(builder.info.features))}.'
        )
    units += _shards(source, config, builder)
  return units


def open_builder(field: str, path: str, data_dir: str) -> Any:
  """The builder of a prepared dataset.

  Args:
    field: The source in the config.
    path: A name such as 'c4/en:3.0.1', or the folder of a version.
    data_dir: Where prepared datasets are; '' for the default of TFDS.

  Raises:
    UserError: it is unknown or not prepared.
  """
  tfds = quiet_tensorflow.import_tfds()
  folder = filesystems.canonical(path)
  filesystems.check_utf8(folder, f'{field}.paths')
  named = filesystems.is_local(path) and not path.startswith(
    ('/', '.', '~', 'file:')
  )
  if named and not tfds.core.Path(folder, INFO).exists():
    folder = _folder_of_name(field, path, data_dir)
  elif not tfds.core.Path(folder, INFO).exists():
    known = (
      ', '.join(_prepared(folder))
      or "the folder of a version, such as 'c4/en/3.0.1'"
    )
    raise UserError(
      f'{field}.paths: {path!r} is not a TFDS dataset: it has no {INFO}. Name '
      f'{known}.'
    )
  return _builder(field, folder)


@functools.lru_cache(maxsize=8)
def _builder(field: str, folder: str) -> Any:
  tfds = quiet_tensorflow.import_tfds()
  from google.protobuf import json_format

  try:
    return tfds.builder_from_directory(folder)
  except (ValueError, OSError, ImportError, json_format.Error) as error:
    raise UserError(
      f'{field}: the TFDS dataset in {folder} cannot be opened '
      f'({quiet_tensorflow.first_line(error)}): prepare it again.'
    ) from None


def _folder_of_name(field: str, name: str, data_dir: str) -> str:
  """The folder of a prepared dataset."""
  tfds = quiet_tensorflow.import_tfds()
  data_dir = filesystems.canonical(
    data_dir or str(tfds.core.constants.DATA_DIR)
  )
  filesystems.check_utf8(data_dir, f'{field}.data_dir')
  try:
    parsed, _ = tfds.core.naming.parse_builder_name_kwargs(name)
    if parsed.namespace:  # TFDS looks these up on the network.
      raise UserError(
        f'{field}.paths: {name!r} is of the namespace {parsed.namespace!r}: '
        'name the folder that it is prepared in instead.'
      )
    folder = tfds.builder(name, data_dir=data_dir).data_dir
  except UserError:
    raise
  except tfds.core.registered.DatasetNotFoundError:
    known = tfds.core.registered.list_imported_builders()
    raise UserError(
      f'{field}.paths: {name!r} is neither a dataset that TFDS knows nor '
      f'prepared in {data_dir}.{_near(parsed.name, known)}' + _listed(data_dir)
    ) from None
  except (ValueError, AssertionError, ImportError) as error:
    # The reason follows the arguments, which are in brackets.
    reason = ' '.join(str(error).rpartition('}": ')[2].split())
    raise UserError(
      f'{field}.paths: TFDS cannot open {name!r}: {reason[:300].rstrip(".:")}.'
      + _listed(data_dir)
    ) from None
  if not tfds.core.Path(folder, INFO).exists():
    raise UserError(
      f'{field}.paths: {name!r} is not prepared (no {INFO} in {folder}). '
      'Nothing is downloaded here. To prepare it: '
      f'tfds build {name} --data_dir={data_dir}.' + _listed(data_dir)
    )
  return str(folder)


def _near(name: str, known: Sequence[str]) -> str:
  near = difflib.get_close_matches(name, known, n=3)
  return f' Did you mean {", ".join(map(repr, near))}?' if near else ''


def _listed(data_dir: str) -> str:
  folders = [posixpath.relpath(f, data_dir) for f in _prepared(data_dir)]
  # 'c4/en/3.0.1' is the name 'c4/en:3.0.1'.
  names = [':'.join(folder.rsplit('/', 1)) for folder in folders]
  return f' Prepared in {data_dir}: {", ".join(names[:20]) or "nothing"}.'


def _prepared(folder: str) -> list[str]:
  """The folders of prepared datasets below a folder."""
  tfds = quiet_tensorflow.import_tfds()
  root = tfds.core.Path(glob.escape(folder))
  return sorted(
    str(info.parent)
    for depth in ('*/', '*/*/', '*/*/*/')
    for info in root.glob(depth + INFO)
  )


def _shards(
  source: str, config: SourceConfig, builder: Any
) -> Iterator[InputFile]:
  """A unit for each shard that the split reads, whole or in part."""
  splits = builder.info.splits
  try:
    instructions = splits[config.split].file_instructions
  except (KeyError, ValueError, AssertionError) as error:
    raise UserError(
      f'corpus.sources.{source}.split: {builder.info.full_name} has no split '
      f'{config.split!r}; splits are {", ".join(splits)}, or parts of them, '
      f"such as 'train[:10%]' ({quiet_tensorflow.first_line(error)})."
    ) from None
  if not instructions:
    raise UserError(
      f'corpus.sources.{source}.split: {config.split!r} of '
      f'{builder.info.full_name} has no example.'
    )
  start_of = {}  # The index of a file's first example in its split.
  for name, split in splits.items():
    start = 0
    for path, length in zip(split.filepaths, split.shard_lengths, strict=True):
      start_of[str(path)] = (name, start)
      start += length
  for instruction in instructions:
    name, start = start_of[str(instruction.filename)]
    start += instruction.skip
    part = f'{name}[{start}:{start + instruction.take}]'
    split = splits[name]
    yield InputFile(
      source,
      replace(config, paths=(str(builder.data_dir),), split=part),
      path=str(instruction.filename),
      name=f'{builder.info.full_name}/{part}',
      size=split.num_bytes * instruction.take // max(split.num_examples, 1),
    )


def check_ids(units: Mapping[str, Sequence[InputFile]]) -> None:
  """Refuses sources of datasets whose examples have equal ids.

  Raises:
    UserError: two datasets of a source of TFDS without an id_column have equal
      file names.
  """
  for source, files in units.items():
    folders: dict[str, str] = {}
    for file in files:
      if file.config.format != 'tfds' or file.config.id_column:
        continue
      folder, name = posixpath.split(file.path)
      if folders.setdefault(name, folder) != folder:
        raise UserError(
          f'corpus.sources.{source}: {folder} and {folders[name]} both have a '
          f'file {name}, so that their examples would have the same tfds_id. '
          'Name a feature that is unique in id_column, or give each dataset a '
          'source of its own.'
        )


def read_records(file: InputFile) -> Records:
  """The examples of a unit, in the shard's order, from number 1.

  Raises:
    UserError: the shard cannot be read to its end.
  """
  tfds = quiet_tensorflow.import_tfds()
  config = file.config
  builder = _builder(f'corpus.sources.{file.source}', config.paths[0])
  wanted: dict[str, Any] = {}
  for name in records.wanted_columns(config):
    *outer, last = _keys(builder.info.features, name)
    node = wanted
    for key in outer:
      node = node.setdefault(key, {})
    node[last] = True
  with quiet_tensorflow.tensorflow_error_as_user_error(file.path):
    dataset = builder.as_dataset(
      split=config.split,
      shuffle_files=False,
      decoders=tfds.decode.PartialDecoding(wanted),
      read_config=tfds.ReadConfig(add_tfds_id=True, try_autocache=False),
    )
    for number, example in enumerate(dataset.as_numpy_iterator(), 1):
      document = functools.partial(_document, file, example)
      yield records.read_record(file, number, document)


def _document(file: InputFile, example: dict[str, Any]) -> Document:
  record = quiet_tensorflow.plain(example)
  return records.record_document(file, record, lambda text: record['tfds_id'])


def _keys(features: Any, name: str) -> tuple[str, ...]:
  """The path of a feature: ('a', 'b') for 'a.b'; () if there is none."""
  if not _is_nested(features):
    return ()
  if name in features:
    return (name,)
  outer, _, inner = name.partition('.')
  if inner and outer in features and (keys := _keys(features[outer], inner)):
    return (outer, *keys)
  return ()


def _names(features: Any, prefix: str = '') -> Iterator[str]:
  for name in features if _is_nested(features) else ():
    if _is_nested(features[name]):
      yield from _names(features[name], f'{prefix}{name}.')
    else:
      yield prefix + name


def _is_nested(features: Any) -> bool:
  tfds = quiet_tensorflow.import_tfds()
  return isinstance(features, tfds.features.FeaturesDict)
