"""Datasets of TFDS: records of id, source and text, and their metadata."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import quiet_tensorflow
from infoprune_jax.runtime import files, filesystems, workers

EXTENSION = '.tfrecord'
FEATURES = ('id', 'source', 'text')
_FRAME = 16  # bytes that TFRecord adds to a record


def check() -> None:
  """Raises `UserError` if TFDS is not installed; does not import it."""
  for package in ('tensorflow', 'tensorflow_datasets'):
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f"export.formats='tfds' needs {package}, which is not installed: "
        "pip install 'infoprune_jax[seqio]'."
      )


def write_records(path: str, records: Iterable[bytes]) -> None:
  """Writes a file of TFRecord."""
  quiet_tensorflow.import_tfds()
  import tensorflow as tf

  with tf.io.TFRecordWriter(path) as writer:
    for record in records:
      writer.write(record)


def metadata_files(
  name: str,
  records_per_shard: Sequence[int],
  num_bytes: int,
  with_repeats: bool = False,
) -> dict[str, str]:
  """The files by which TFDS opens a folder of shards, by name.

  Args:
    name: Name of the dataset.
    records_per_shard: Number of records of each shard, in order.
    num_bytes: Bytes of all shards, as TFRecord.
    with_repeats: Whether records have an integer `repeats` besides.
  """
  task = (name, list(records_per_shard), num_bytes, with_repeats)
  force_subprocess = quiet_tensorflow.needs_subprocess()
  return next(workers.run_all(_metadata_files, [task], 1, force_subprocess))


def _metadata_files(task: tuple[str, list[int], int, bool]) -> dict[str, str]:
  name, counts, num_bytes, with_repeats = task
  tfds = quiet_tensorflow.import_tfds()
  features: dict[str, Any] = {key: tfds.features.Text() for key in FEATURES}
  if with_repeats:
    features['repeats'] = tfds.features.Scalar(np.int64)
  with files.scratch_folder() as folder:
    info = tfds.core.DatasetInfo(
      builder=tfds.core.dataset_info.DatasetIdentity(
        name=name,
        version=tfds.core.Version('1.0.0'),
        data_dir=folder,
        module_name='',
      ),
      features=tfds.features.FeaturesDict(features),
    )
    template = tfds.core.ShardedFileTemplate(
      data_dir=folder,
      dataset_name=name,
      split='train',
      filetype_suffix=EXTENSION.removeprefix('.'),
      template='part-{SHARD_X_OF_Y}.{FILEFORMAT}',
    )
    split = tfds.core.SplitInfo(
      name='train',
      shard_lengths=counts,
      num_bytes=num_bytes - _FRAME * sum(counts),
      filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.set_file_format('tfrecord')
    info.write_to_directory(folder)
    texts = {}
    for file in filesystems.names_in(folder):
      texts[file] = files.read_bytes(f'{folder}/{file}').decode()
    return texts
