"""Drivers: the packages behind URLs, and what each kind of store can hold."""

import contextlib
from collections.abc import Iterator

from infoprune_jax.config.validation import UserError

# Orbax writes by TensorStore, which has no driver for other stores.
_WITH_CHECKPOINTS = ('gs', 'gcs')
_LOST = ('memory',)


def protocol_of(path: str) -> str:
  """The part of a URL before '://'; '' for a path."""
  protocol, url, _ = path.partition('://')
  return protocol if url else ''


@contextlib.contextmanager
def missing_driver_as_user_error(path: str) -> Iterator[None]:
  """Raises `UserError` if fsspec has no file system for a URL.

  Args:
    path: The URL.
  """
  try:
    yield
  except UserError:
    raise
  except ImportError as error:
    package = getattr(error.__cause__, 'name', None) or 'what it names'
    raise UserError(
      f'{path!r} needs a driver that is not installed ({error}): pip install '
      f'{package}.'
    ) from None
  except ValueError as error:
    raise UserError(
      f'{path!r} is not a path or URL that fsspec knows ({error}). URLs start with '
      'file://, gs://, s3://, https://, zip:// and the like; another scheme '
      'needs the package of its driver.'
    ) from None


def check_keeps(path: str, option: str) -> None:
  """Raises `UserError` for a store that ends with this process."""
  if protocol_of(path) in _LOST:
    raise UserError(
      f'{option}={path} would be lost when this process ends, and other '
      'processes do not see it: name a folder, or a URL such as gs://bucket/run.'
    )


def check_holds_checkpoints(path: str, option: str, job: str) -> None:
  """Raises `UserError` for a store that Orbax can neither write nor read.

  Args:
    path: A URL.
    option: The option that names it.
    job: The jobs that need checkpoints there, for the message.
  """
  protocol = protocol_of(path)
  if protocol in _WITH_CHECKPOINTS:
    return
  raise UserError(
    f'{job} needs checkpoints in {option}={path}, but Orbax, which writes and '
    f'reads them, supports only folders and gs://, not {protocol}://. Mount the '
    'bucket as a folder and name that, or copy it to a disk, run there, and '
    'copy it back. The other stages can use the bucket, one --job at a time.'
  )
