"""The vocabulary of a workdir: that of the config, or trained on the corpus."""

from collections.abc import Mapping

import numpy as np

from infoprune_jax.config.experiment import Config
from infoprune_jax.corpus import draw
from infoprune_jax.corpus.corpus_index import CorpusIndex
from infoprune_jax.runtime import artifacts, hashing
from infoprune_jax.runtime.progress import Progress, counted, logger, wipe
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.tokens import vocabulary, vocabulary_files


def describe(
  config: Config, workdir: str, inputs: Mapping[str, str]
) -> artifacts.Artifact:
  """The vocabulary, made from these inputs."""
  return artifacts.Artifact(
    vocabulary_dir(workdir),
    'vocabulary',
    'tokenize',
    config.vocabulary,
    inputs,
    sections={'': 'vocabulary'},
  )


def open_or_make(
  config: Config, workdir: str, index: CorpusIndex
) -> vocabulary.Vocabulary:
  """The vocabulary: read from the workdir, given by the config, or trained.

  Args:
    config: The experiment.
    workdir: Where the vocabulary is, or will be.
    index: The corpus as it was first tokenized.

  Raises:
    UserError: the vocabulary that is there is that of another config.
  """
  given = vocabulary_files.of_config(config)
  if given:
    warn(given, config.vocabulary.path or config.reference.checkpoint.path)
  inputs = {'model': given.hash} if given else {'corpus': index.fingerprint()}
  artifact = describe(config, workdir, inputs)
  if artifact.finished():
    return vocabulary.Vocabulary.load(artifact.path)
  words = given or _train_vocabulary(config, index)
  words.save(artifact)
  return words


def warn(given: vocabulary.Vocabulary, path: str) -> None:
  """Warns if a given vocabulary changes text, or text encodes to BOS or EOS."""
  if given.bos_id == given.eos_id:
    logger.info(
      'tokenize: the vocabulary %s has no BOS of its own: EOS, the id %d, '
      'conditions the first token of a document',
      path,
      given.eos_id,
    )
  if given.is_lossy:
    logger.warning(
      'tokenize: the vocabulary %s changes some text (it normalises, or has no '
      'byte fallback): text that it loses is not scored',
      path,
    )
  for id_ in given.reachable_from_text:
    logger.warning(
      'tokenize: the id %d starts or ends documents, but the vocabulary %s '
      'also encodes some text with this id',
      id_,
      path,
    )


def _train_vocabulary(
  config: Config, index: CorpusIndex
) -> vocabulary.Vocabulary:
  """Trains a vocabulary on a seeded sample of the reference split."""
  reference = np.flatnonzero(index.split == draw.REFERENCE)
  keys = hashing.mix(index.content_hash[reference], config.corpus.seed + 1)
  order = reference[np.argsort(keys, kind='stable')]
  size = index.num_bytes[order]
  drawn = order[np.cumsum(size) - size < config.vocabulary.train_bytes]
  chosen = np.zeros(len(index.split), bool)
  chosen[drawn] = True

  progress = Progress(
    'tokenize: vocabulary', 'B', float(size[: len(drawn)].sum())
  )
  lines: list[str] = []
  for document in index.documents(chosen):
    lines += document.text.splitlines(keepends=True)
    progress.add(len(document.text.encode()))
  wipe()
  logger.info(
    'tokenize: trains a vocabulary (%s) of %d tokens on %s',
    config.vocabulary.type,
    config.vocabulary.size,
    counted(len(drawn), 'reference document'),
  )
  return vocabulary.train(config.vocabulary, lines)
