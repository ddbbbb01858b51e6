"""SeqIO tasks and mixtures: a unit is a shard of a task's source.

Examples of a task need no id. Without id_column and `tfds_id`, the id of an
example is a fingerprint of its text.
"""

import contextlib
import difflib
import functools
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow, records, tfds_source
from infoprune_jax.corpus.records import Document, InputFile, Records
from infoprune_jax.runtime.hashing import text_hash


def fingerprint(text: str) -> str:
  """The id of an example without one: 16 hex digits, a hash of its text.

  >>> fingerprint('a')
  '2f42665b399ef840'
  """
  return f'{text_hash(text) & (2**64 - 1):016x}'


def list_units(
  source: str, config: SourceConfig, warnings: list[str]
) -> list[InputFile]:
  """The shards of a source's tasks, in order; nothing is read or downloaded.

  Args:
    source: Its name in the config.
    config: The source.
    warnings: Warnings for the user are appended here.

  Raises:
    UserError: there is no such task, split or column, or its data is missing.
  """
  field = f'corpus.sources.{source}'
  _import_module(field, config.module)
  units: dict[str, InputFile] = {}  # A task may be in several mixtures.
  for name in config.paths:
    for label, task in _tasks(field, name, source, config.split, warnings):
      for unit in _shards(field, label, config, task):
        units.setdefault(unit.path, unit)
      if _vocabulary(field, task, config):
        warnings.append(
          f'{field}: {config.text_column!r} of the task {task.name!r} holds '
          'token ids. They are decoded with its vocabulary, which may change '
          'the text (white space, normalisation, unknown characters). Name a '
          'column of raw text if there is one.'
        )
  return list(units.values())


def _import_module(field: str, module: str) -> None:
  if not module:
    return
  try:
    importlib.import_module(module)
  except Exception as error:  # It is the user's code: whatever it raises.
    raise UserError(
      f'{field}.module: {module!r} cannot be imported '
      f'({quiet_tensorflow.first_line(error)}). Name a module that is '
      'installed or on PYTHONPATH.'
    ) from error


def _tasks(
  field: str, name: str, source: str, split: str, warnings: list[str]
) -> Iterator[tuple[str, Any]]:
  """The tasks that a name stands for, with the source of their documents."""
  seqio = quiet_tensorflow.import_seqio()
  mixtures, tasks = seqio.MixtureRegistry.names(), seqio.TaskRegistry.names()
  if name in mixtures:
    tasks_of_name = [(t.name, t) for t in seqio.MixtureRegistry.get(name).tasks]
  elif name in tasks:
    tasks_of_name = [(source, seqio.TaskRegistry.get(name))]
  else:
    known = sorted({*mixtures, *tasks})
    near = difflib.get_close_matches(name, known, n=3)
    raise UserError(
      f'{field}.paths: {name!r} is not a registered SeqIO task or mixture. '
      + (f'Did you mean {", ".join(map(repr, near))}? ' if near else '')
      + f'{len(known)} are registered: {", ".join(known[:10]) or "none"}'
      + (', ... ' if len(known) > 10 else '. ')
      + f'Name the module that registers it in {field}.module.'
    )
  for _, task in tasks_of_name:
    _check_prepared(field, task, split)
  with _users_code(field, name):
    with_split = [
      (label, task) for label, task in tasks_of_name if split in task.splits
    ]
    splits = sorted(
      {split for _, task in tasks_of_name for split in task.splits}
    )
  if not with_split:
    raise UserError(
      f'{field}.split: {name!r} has no split {split!r}; splits are '
      f'{", ".join(splits)}.'
    )
  if len(with_split) < len(tasks_of_name):
    lacking = sorted(
      {t.name for _, t in tasks_of_name} - {t.name for _, t in with_split}
    )
    warnings.append(
      f'{field}: {", ".join(lacking)} of the mixture {name!r} have no split '
      f'{split!r} and are left out'
    )
  yield from with_split


@contextlib.contextmanager
def _users_code(field: str, name: str) -> Iterator[None]:
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # It is the user's code: whatever it raises.
    raise UserError(
      f'{field}: the task {name!r} cannot be opened: '
      f'{quiet_tensorflow.first_line(error)}'
    ) from error


def _shards(
  field: str, label: str, config: SourceConfig, task: Any
) -> list[InputFile]:
  with _users_code(field, task.name):
    shards = task.source.list_shards(config.split)
  if not shards:
    raise UserError(
      f'{field}: the task {task.name!r} finds no file for its split '
      f'{config.split!r}: its source is {task.source}.'
    )
  _check_columns(field, task, config)
  units = []
  for index, shard in enumerate(shards):
    name = f'{task.name}/{config.split}-{index:05}-of-{len(shards):05}'
    units.append(
      InputFile(
        label,
        replace(config, paths=(task.name,)),
        path=name,
        name=name,
        size=_size(shard),
        shard=(index, len(shards)),
      )
    )
  return units


def _size(shard: str) -> int:
  """The bytes of a shard that is a file; 0 for the shard of a function."""
  import tensorflow as tf

  return tf.io.gfile.stat(shard).length if tf.io.gfile.exists(shard) else 0


def _check_prepared(field: str, task: Any, split: str) -> None:
  """Refuses data that SeqIO would download."""
  seqio = quiet_tensorflow.import_seqio()
  if not isinstance(task.source, seqio.TfdsDataSource):
    return
  loader = task.source.tfds_dataset
  # Each split may have a dataset of its own.
  if loader.tfds_splits is None or split in loader.tfds_splits:
    name, data_dir = loader.get_split_params(split)
    tfds_source.open_builder(field, name or data_dir, data_dir or '')


@contextlib.contextmanager
def _with_tfds_ids() -> Iterator[None]:
  """Lets SeqIO read TFDS with ids, and restores the user's setting after."""
  seqio = quiet_tensorflow.import_seqio()
  tfds = quiet_tensorflow.import_tfds()
  before = seqio.utils._TFDS_DATA_READ_CONFIG_OVERRIDE  # It has no getter.
  with_ids = replace(before or tfds.ReadConfig(), add_tfds_id=True)
  seqio.utils.set_tfds_read_config_override(with_ids)
  try:
    yield
  finally:
    seqio.utils.set_tfds_read_config_override(before)


def _dataset(field: str, task: Any, split: str, shard: tuple[int, int]) -> Any:
  """A task's preprocessed examples, whole, in the source's order."""
  import tensorflow as tf

  seqio = quiet_tensorflow.import_seqio()
  with _users_code(field, task.name), _with_tfds_ids():
    # Preprocessors that draw at random repeat their draws in the second pass.
    tf.random.set_seed(shard[0])
    return task.get_dataset(
      sequence_length=None,
      split=split,
      shuffle=False,
      num_epochs=1,
      try_in_mem_cache=False,
      # A source that is a function refuses shard options, even for one shard.
      shard_info=seqio.ShardInfo(*shard) if shard[1] > 1 else None,
    )


@functools.lru_cache(maxsize=256)
def _spec(field: str, name: str, split: str) -> dict[str, Any]:
  """The names and types of a task's columns."""
  seqio = quiet_tensorflow.import_seqio()
  task = seqio.TaskRegistry.get(name)
  return _dataset(field, task, split, (0, 1)).element_spec


def _check_columns(field: str, task: Any, config: SourceConfig) -> None:
  spec = _spec(field, task.name, config.split)
  for name in records.wanted_columns(config):
    if _column(spec, name) is None:
      raise UserError(
        f'{field}: the task {task.name!r} has no column {name!r}; '
        + _columns_of(task, spec)
      )


def _vocabulary(field: str, task: Any, config: SourceConfig) -> Any | None:
  """The vocabulary that decodes the text column; None if it holds text.

  Raises:
    UserError: it holds neither text nor token ids that can be decoded.
  """
  spec = _spec(field, task.name, config.split)
  name = config.text_column
  if _is_text(_column(spec, name)):
    return None
  if not _is_tokens(task, spec, name):
    raise UserError(
      f'{field}.text_column: {name!r} of the task {task.name!r} holds neither '
      'text nor token ids that its vocabulary decodes; '
      + _columns_of(task, spec)
    )
  return task.output_features[name].vocabulary


def _columns_of(task: Any, spec: dict[str, Any]) -> str:
  """The end of a message: the columns of a task, by what they hold."""
  names = list(_names(spec))
  texts = [name for name in names if _is_text(_column(spec, name))]
  tokens = [name for name in names if _is_tokens(task, spec, name)]
  return (
    f'columns are {", ".join(names)}; of text: {", ".join(texts) or "none"}; '
    f'of token ids that can be decoded: {", ".join(tokens) or "none"}. '
    'seqio.preprocessors.tokenize keeps the text of a feature in '
    'NAME_pretokenized, unless copy_pretokenized=False.'
  )


def _is_tokens(task: Any, spec: dict[str, Any], name: str) -> bool:
  seqio = quiet_tensorflow.import_seqio()
  column, feature = _column(spec, name), task.output_features.get(name)
  return (
    column is not None
    and feature is not None
    and not isinstance(feature.vocabulary, seqio.PassThroughVocabulary)
    and column.dtype.is_integer
    and column.shape.rank == 1
  )


def _column(spec: Any, name: str) -> Any | None:
  try:
    return records.column(spec, name)
  except records.Bad:
    return None


def _is_text(column: Any) -> bool:
  import tensorflow as tf

  return (
    isinstance(column, tf.TensorSpec)
    and column.dtype == tf.string
    and column.shape.rank == 0
  )


def _names(spec: dict[str, Any], prefix: str = '') -> Iterator[str]:
  for name, column in sorted(spec.items()):
    if isinstance(column, dict):
      yield from _names(column, f'{prefix}{name}.')
    else:
      yield prefix + name


def read_records(file: InputFile) -> Records:
  """The examples of a unit, in the task's order, from number 1.

  Raises:
    UserError: the unit cannot be read to its end.
  """
  seqio = quiet_tensorflow.import_seqio()
  config = file.config
  field = f'corpus.sources.{file.source}'
  _import_module(field, config.module)
  task = seqio.TaskRegistry.get(config.paths[0])
  vocabulary = _vocabulary(field, task, config)
  dataset = _dataset(field, task, config.split, file.shard)
  wanted = {*records.wanted_columns(config), 'tfds_id'}
  keys = [
    key
    for key in dataset.element_spec
    if key in wanted or any(name.startswith(f'{key}.') for name in wanted)
  ]
  dataset = dataset.map(lambda example: {key: example[key] for key in keys})
  with quiet_tensorflow.tensorflow_error_as_user_error(file.path):
    for number, example in enumerate(dataset.as_numpy_iterator(), 1):
      document = functools.partial(_document, file, vocabulary, example)
      yield records.read_record(file, number, document)


def _document(
  file: InputFile, vocabulary: Any | None, example: dict[str, Any]
) -> Document:
  if vocabulary is not None:
    name = file.config.text_column
    example = {**example, name: _decode(vocabulary, example[name].tolist())}
  record = quiet_tensorflow.plain(example)

  def default_id(text: str) -> str:
    return record['tfds_id'] if 'tfds_id' in record else fingerprint(text)

  return records.record_document(file, record, default_id)


def _decode(vocabulary: Any, ids: Sequence[int]) -> str:
  """The text of token ids, without EOS and padding at their end."""
  ids = list(ids)
  while ids and ids[-1] in (vocabulary.pad_id, vocabulary.eos_id):
    ids.pop()
  if vocabulary.eos_id in ids:  # `decode` would stop there.
    raise records.Bad(
      'tokens after EOS', f'at token {ids.index(vocabulary.eos_id)}'
    )
  return vocabulary.decode(ids)
