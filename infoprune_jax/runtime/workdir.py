"""The paths of everything below a workdir.

An artifact is a folder. Its data files are in folders of their own,
`data/part-*.parquet` first of all, so that other programs can read those
folders. Its manifest, the markers of its shards and its lock are beside them.
"""

import posixpath

DATA = 'data'  # the folder with the data files of an artifact
TASK_RESULTS = 'results.json'  # the file in `task_results_dir`


def vocabulary_dir(workdir: str) -> str:
  """The vocabulary: a SentencePiece model or a tokenizer.json."""
  return posixpath.join(workdir, 'vocabulary')


def token_store_dir(workdir: str) -> str:
  """Token ids and documents."""
  return posixpath.join(workdir, 'token_store')


def reference_dir(workdir: str, fold: int = 0, folds: int = 1) -> str:
  """The training run of the reference model, or of the model of a fold."""
  path = posixpath.join(workdir, 'reference')
  return path if folds == 1 else posixpath.join(path, f'fold-{fold}')


def reference_input(fold: int, folds: int) -> str:
  """The name of a fold's reference model in the inputs of a score table."""
  return 'reference' if folds == 1 else f'reference_fold_{fold}'


def statistics_dir(workdir: str) -> str:
  """Statistics of the examples to score, computed without a model."""
  return posixpath.join(workdir, 'statistics')


def near_duplicates_dir(workdir: str) -> str:
  """The group of near-duplicates of each example."""
  return posixpath.join(workdir, 'near_duplicates')


def heldout_copies_dir(workdir: str) -> str:
  """Which held-out documents have near-copies in other text."""
  return posixpath.join(workdir, 'heldout_copies')


def duplicated_text_dir(workdir: str) -> str:
  """How many tokens of each example occur elsewhere, too."""
  return posixpath.join(workdir, 'duplicated_text')


def contamination_dir(workdir: str) -> str:
  """Which examples have text of benchmarks, and in it `ngrams/`."""
  return posixpath.join(workdir, 'contamination')


def user_table_dir(workdir: str, name: str) -> str:
  """A table of the user's, joined with the scored examples."""
  return posixpath.join(workdir, 'tables', name)


def user_table_input(name: str) -> str:
  """The name of such a table in the inputs of what is made from it."""
  return f'tables/{name}'


def classifier_dir(workdir: str, name: str) -> str:
  """A classifier's log odds of each example, and in it `model/`."""
  return posixpath.join(workdir, 'classifiers', name)


def scores_dir(workdir: str) -> str:
  """The score table."""
  return posixpath.join(workdir, 'scores')


def own_scores_dir(workdir: str, arm: str, seed: int) -> str:
  """The score table by the checkpoint that a run of an arm starts from."""
  return posixpath.join(workdir, 'own_scores', arm, f'seed-{seed}')


def keep_set_dir(workdir: str, selection: str) -> str:
  """The keep set of one arm; `selection` is `keep_set.selection_name(...)`."""
  return posixpath.join(workdir, 'keep_sets', selection)


def run_dir(workdir: str, arm: str, seed: int) -> str:
  """The training run of one arm and seed."""
  return posixpath.join(workdir, 'train', arm, f'seed-{seed}')


def evaluation_dir(workdir: str, arm: str, seed: int) -> str:
  """The held-out losses of one arm and seed."""
  return posixpath.join(workdir, 'evaluate', arm, f'seed-{seed}')


def task_results_dir(workdir: str, arm: str, seed: int) -> str:
  """What one arm and seed gets in tasks."""
  return posixpath.join(workdir, 'tasks', arm, f'seed-{seed}')


def labels_dir(workdir: str, digest: str) -> str:
  """A workdir for pages that people judged, scored by one set of models."""
  return posixpath.join(workdir, 'labels', digest)


def loss_dir(workdir: str) -> str:
  """A workdir for `--job=loss`, while it runs."""
  return posixpath.join(workdir, 'loss')


def loss_file(workdir: str) -> str:
  """The losses of a corpus, by source and by position."""
  return posixpath.join(workdir, 'loss.json')


def selection_report_dir(workdir: str) -> str:
  """`index.html`, `selections.json`, `figures/` and `tables/`."""
  return posixpath.join(workdir, 'selection_report')


def report_dir(workdir: str) -> str:
  """`index.html`, `report.json`, `figures/` and `tables/`."""
  return posixpath.join(workdir, 'report')


def export_dir(workdir: str) -> str:
  """Exports for other programs: a folder per keep set, and in it per format."""
  return posixpath.join(workdir, 'export')


def beam_dir(workdir: str, job: str) -> str:
  """Tasks and results of workers of Apache Beam, while a job runs."""
  return posixpath.join(workdir, 'beam', job)


def shard_name(shard: int, num_shards: int) -> str:
  """'part-00003-of-00008'."""
  return f'part-{shard:05d}-of-{num_shards:05d}'


def data_file(
  shard: int, num_shards: int, extension: str = '.parquet', folder: str = DATA
) -> str:
  """The path of a file of a shard in its artifact.

  >>> data_file(3, 8)
  'data/part-00003-of-00008.parquet'
  """
  return posixpath.join(folder, shard_name(shard, num_shards) + extension)
