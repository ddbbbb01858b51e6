"""Pages that people judged: JSONL records with a text and a label, 0 or 1."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from infoprune_jax.config.corpus import SourceConfig
from infoprune_jax.config.experiment import LabelsConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, records, sources
from infoprune_jax.corpus.records import Document, InputFile

NAME = 'pages'  # the source of a page where no column holds groups


@dataclasses.dataclass(frozen=True, eq=False)
class Pages:
  """Labelled pages, in the order of their files."""

  documents: tuple[Document, ...]  # N; the source of each is its group
  label: np.ndarray  # [N] bool
  digest: str  # of all records


def read(config: LabelsConfig) -> Pages:
  """Reads all pages; there are few, as people have judged them.

  Raises:
    UserError: a record is not a page with a label, or all labels are the same.
  """
  if not config.path:
    raise UserError(
      'labels.path is empty: name JSONL with a text and a label in each record, '
      'such as --config.labels.path=judged.jsonl.'
    )
  folder, files = sources.FORMATS['jsonl'].matches('labels.path', config.path)
  names = paths.relative_names([path for path, _ in files], [folder])
  source = _source(config)
  digest = hashlib.sha256()
  documents, labels = [], []
  for (path, size), name in zip(files, names, strict=True):
    file = InputFile(NAME, source, path, name, size)
    number = 0  # if no line can be read
    try:
      for number, line in sources.read_lines(path):
        digest.update(line)
        record = sources.json_object(line)
        labels.append(_label(records.column(record, config.label_column)))
        place = records.id_of_place(file, number)
        documents.append(records.record_document(file, record, place))
    except records.Bad as bad:
      raise UserError(
        f'{path}:{number}: {bad.args[0]} ({bad.args[1]}). '
        'labels.text_column, labels.label_column and labels.group_column name '
        'columns with a text, with a label of 0 or 1, and with the name of a '
        'group.'
      ) from None
  label = np.array(labels, bool)
  _check_both(config.path, label)
  return Pages(tuple(documents), label, digest.hexdigest()[:16])


def _source(config: LabelsConfig) -> SourceConfig:
  return SourceConfig(
    format='jsonl',
    paths=(config.path,),
    text_column=config.text_column,
    id_column='',
    source_column=config.group_column,
    split='',
    data_dir='',
    module='',
  )


def _label(value: Any) -> bool:
  """A label; raises `records.Bad`."""
  if not isinstance(value, bool | int | float) or value not in (0, 1):
    raise records.Bad('bad label', f'{value!r:.50} is neither 0 nor 1')
  return bool(value)


def _check_both(path: str, label: np.ndarray) -> None:
  if not len(label):
    raise UserError(f'labels.path: {path!r} holds no page.')
  if label.all() or not label.any():
    raise UserError(
      f'labels.path: all {len(label)} pages of {path!r} have the label '
      f'{int(label[0])}: add pages with the other label.'
    )
