"""A workdir with all that scoring reads, for jobs of several processes."""

import dataclasses
import hashlib
import pathlib

from small_corpus import small_config

from infoprune_jax.config import experiment as config_lib
from infoprune_jax.tokens import tokenize
from infoprune_jax.train import runs

CONFIG = """
from small_corpus import small_config


def get_config():
  config = small_config({path!r})
  config.corpus.num_shards = {num_shards}
  config.reference.folds = {folds}
  config.score.per_device_batch_size = 2
  return config
"""


@dataclasses.dataclass(frozen=True)
class Workdir:
  """A workdir with all that scoring reads."""

  path: pathlib.Path
  config: pathlib.Path

  @property
  def job(self) -> tuple[pathlib.Path, pathlib.Path]:
    """What `Job` wants to know."""
    return self.path, self.config

  def copy(self, path: pathlib.Path) -> 'Workdir':
    path.mkdir()
    for name in ('token_store', 'vocabulary', 'reference'):
      (path / name).symlink_to(self.path / name)
    return Workdir(path, self.config)

  def scores(self) -> dict[str, str]:
    """The checksum of every file of the table."""
    folder = self.path / 'scores'
    return {
      str(file.relative_to(folder)): hashlib.sha256(
        file.read_bytes()
      ).hexdigest()
      for file in sorted(folder.rglob('*'))
      if file.is_file() and file.name != '.lock'
    }


def prepare(
  corpus_path: str, folder: pathlib.Path, folds: int, num_shards: int
) -> Workdir:
  """Tokenizes the corpus and trains the reference model, in this process."""
  config = small_config(corpus_path)
  config.corpus.num_shards = num_shards
  config.reference.folds = folds
  made = config_lib.from_mapping(config)
  tokenize.run(made, str(folder))
  runs.run_reference(made, str(folder))
  path = folder / 'hosts.py'
  path.write_text(
    CONFIG.format(path=corpus_path, num_shards=num_shards, folds=folds)
  )
  return Workdir(folder, path)
