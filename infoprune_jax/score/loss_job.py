"""The job that computes the losses of a corpus and keeps nothing else.

`--job=loss` tokenizes and scores every document in a folder of its own, so that a
killed job continues. It writes the losses, and deletes the folder.
"""

import dataclasses
from typing import Any, cast

from infoprune_jax.config.experiment import Config
from infoprune_jax.runtime import files, filesystems, hub, manifests
from infoprune_jax.runtime.options import first_difference, recorded
from infoprune_jax.runtime.progress import logger
from infoprune_jax.runtime.workdir import loss_dir, loss_file, scores_dir
from infoprune_jax.score import losses, references, stage
from infoprune_jax.tokens import tokenize, vocabulary_files
from infoprune_jax.tokens.token_store import TokenStore

JOB = 'loss'


def run(config: Config, workdir: str) -> None:
  """Prints and writes the losses of every document, in whichever split it is.

  Raises:
    UserError: as the stages `tokenize` and `score` do.
  """
  config = _without_splits(config)
  home, path = loss_dir(workdir), loss_file(workdir)
  asked = _made_from(config)
  files.check_writable(workdir)
  with files.lock(home):
    done = files.read_json(path)
    if done and not first_difference(done['made_from'], asked, JOB):
      logger.info('loss: finished before, skipped')
    else:
      done = {
        'made_from': recorded(asked),
        **hub.facts(),
        **_computed(config, home),
      }
      files.write_json(path, done)
  filesystems.delete_folder(home)
  figures = cast(losses.Summary, done)
  print(f'{losses.text(figures)}\n\n{losses.text_by_position(figures)}')
  logger.info('loss: wrote %s', path)


def _without_splits(config: Config) -> Config:
  corpus = dataclasses.replace(
    config.corpus,
    reference_fraction=0.0,
    heldout_fraction=0.0,
    split_by='content',
  )
  return dataclasses.replace(config, corpus=corpus)


def _made_from(config: Config) -> dict[str, Any]:
  """The options and inputs that decide the losses.

  The content of the corpus is not among them, so a change of it is not noticed.
  """
  given = list(references.given_models(config).values())
  words = vocabulary_files.of_config(config)
  return {
    **tokenize.store_options(config),
    'vocabulary_hash': words.hash if words else '',
    'score': stage.score_options(config),
    'models': references.made_from(given),
    'steps': references.steps(given),
  }


def _computed(config: Config, home: str) -> losses.Summary:
  tokenize.run(config, home)
  store = TokenStore.open(home)
  models = references.open_all(config, home, store)
  steps, inputs = references.steps(models), stage.made_from(store, models)
  scores = stage.describe(config, home, steps, inputs, JOB)
  stage.write(config, store, models, scores)
  manifest = manifests.open_finished(scores_dir(home), 'score table', JOB)
  return cast(Any, manifest)['losses']
