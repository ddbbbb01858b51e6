"""Imports TensorFlow, TFDS and SeqIO where used, quietly, on the CPU."""

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import records


def needs_subprocess() -> bool:
  """Whether this is a main process that has no TensorFlow yet.

  TensorFlow takes 10 seconds to import, stays in memory and takes devices that
  JAX needs.
  """
  return (
    multiprocessing.parent_process() is None and 'tensorflow' not in sys.modules
  )


@functools.cache
def import_tfds() -> Any:
  """The module `tensorflow_datasets`.

  Raises:
    UserError: it or TensorFlow is not installed.
  """
  with _importing('TensorFlow Datasets'):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # Leaves the devices to JAX. CUDA may complain when they are listed.
    tf.config.set_visible_devices([], 'GPU')
  # TFDS warns of calls of its own that are deprecated.
  tf.get_logger().setLevel('ERROR')
  logging.set_verbosity(logging.ERROR)
  return tfds


@functools.cache
def import_seqio() -> Any:
  """The module `seqio`.

  Raises:
    UserError: it or TensorFlow is not installed.
  """
  import_tfds()
  with _importing('SeqIO'):
    import seqio
  return seqio


@contextlib.contextmanager
def _importing(what: str) -> Iterator[None]:
  # TensorFlow writes to the descriptor before it reads any setting of its log.
  sys.stderr.flush()
  stderr = os.dup(2)
  with open(os.devnull, 'wb') as null:
    os.dup2(null.fileno(), 2)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    yield
  except ImportError as error:
    raise UserError(
      f'This config needs {what}, which cannot be imported '
      f"({error}): pip install 'infoprune_jax[seqio]'."
    ) from None
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)


@contextlib.contextmanager
def tensorflow_error_as_user_error(path: str) -> Iterator[None]:
  """Turns a reading error of TensorFlow into a `UserError` with the path."""
  import tensorflow as tf

  try:
    yield
  except (tf.errors.OpError, OSError) as error:
    raise UserError(f'{path} cannot be read: {first_line(error)}') from None


def first_line(error: Exception) -> str:
  """The first line of an error, without the stack and the node after it."""
  lines = str(getattr(error, 'message', error)).strip().splitlines()
  return f'{type(error).__name__}: {(lines or ["no reason given"])[0]:.300}'


def plain(value: Any) -> Any:
  """A NumPy value of an example in Python's types, bytes as text.

  Raises:
    Bad: bytes are not UTF-8.
  """
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, bytes):
    return records.utf8(value)
  return value.item() if isinstance(value, np.generic) else value
