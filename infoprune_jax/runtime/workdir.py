"""Where everything lies below a workdir.

An artifact is a folder. Its data files are in folders of their own,
`data/part-*.parquet` first of all, so that other programs can read those
folders. Its manifest, the markers of its shards and its lock are beside them.
"""

import posixpath

DATA = 'data'  # the folder with the data files of an artifact


def vocabulary_dir(workdir: str) -> str:
  """The vocabulary: a SentencePiece model or a tokenizer.json."""
  return posixpath.join(workdir, 'vocabulary')


def token_store_dir(workdir: str) -> str:
  """Token ids and documents."""
  return posixpath.join(workdir, 'token_store')


def reference_dir(workdir: str, fold: int = 0, folds: int = 1) -> str:
  """The training run of the reference model, or of a fold's."""
  path = posixpath.join(workdir, 'reference')
  return path if folds == 1 else posixpath.join(path, f'fold-{fold}')


def reference_input(fold: int, folds: int) -> str:
  """What a score table calls the reference model of a fold, in its inputs."""
  return 'reference' if folds == 1 else f'reference_fold_{fold}'


def statistics_dir(workdir: str) -> str:
  """What is known of the examples to score without a model."""
  return posixpath.join(workdir, 'statistics')


def near_duplicates_dir(workdir: str) -> str:
  """Which group of near-duplicates each example is in."""
  return posixpath.join(workdir, 'near_duplicates')


def scores_dir(workdir: str) -> str:
  """The score table."""
  return posixpath.join(workdir, 'scores')


def keep_set_dir(workdir: str, selection: str) -> str:
  """What one arm keeps; `selection` is `keep_set.selection_name(...)`."""
  return posixpath.join(workdir, 'keep_sets', selection)


def run_dir(workdir: str, arm: str, seed: int) -> str:
  """The training run of one arm and seed."""
  return posixpath.join(workdir, 'train', arm, f'seed-{seed}')


def evaluation_dir(workdir: str, arm: str, seed: int) -> str:
  """The held-out losses of one arm and seed."""
  return posixpath.join(workdir, 'evaluate', arm, f'seed-{seed}')


def labels_dir(workdir: str, digest: str) -> str:
  """A workdir for pages that people judged, as one set of models scores them."""
  return posixpath.join(workdir, 'labels', digest)


def selection_report_dir(workdir: str) -> str:
  """`index.html` and `selections.json`."""
  return posixpath.join(workdir, 'selection_report')


def report_dir(workdir: str) -> str:
  """`index.html` and `report.json`."""
  return posixpath.join(workdir, 'report')


def export_dir(workdir: str) -> str:
  """What other programs read: a folder of each keep set, one of a format."""
  return posixpath.join(workdir, 'export')


def beam_dir(workdir: str, job: str) -> str:
  """What workers of Apache Beam are given to do, while they do it."""
  return posixpath.join(workdir, 'beam', job)


def shard_name(shard: int, num_shards: int) -> str:
  """'part-00003-of-00008'."""
  return f'part-{shard:05d}-of-{num_shards:05d}'


def data_file(
  shard: int, num_shards: int, extension: str = '.parquet', folder: str = DATA
) -> str:
  """Where a file of a shard lies in its artifact.

  >>> data_file(3, 8)
  'data/part-00003-of-00008.parquet'
  """
  return posixpath.join(folder, shard_name(shard, num_shards) + extension)
