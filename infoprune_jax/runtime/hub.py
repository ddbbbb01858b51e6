"""Models and datasets of the Hugging Face Hub.

A model is named hf://ORG/NAME[@REVISION][/PATH], or ORG/NAME[@REVISION] if no
local path has this name. `local` downloads it to the cache of huggingface_hub.
Files of a dataset are named hf://datasets/ORG/NAME[@REVISION]/PATH. fsspec reads
them in ranges, and `pinned` names the commit that it reads.

A process asks once which commit a revision is, so that a job sees one commit.
The library reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
"""

import contextlib
import dataclasses
import functools
import posixpath
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems
from infoprune_jax.runtime.progress import logger

PROTOCOL = 'hf://'
TIMEOUT = 10  # seconds that the Hub has for its first answer
_ID = r'\w[\w.-]*/\w[\w.-]*'
_BARE = re.compile(rf'({_ID})(?:@([^/]+))?')
_URL = re.compile(
  rf'{PROTOCOL}(datasets/)?(?!(?:models|spaces|buckets)/)({_ID})'
  r'(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?'
)
_FILE_EXTENSIONS = ('.gguf', '.json', '.model', '.safetensors')
# The files of a model that are read, besides its weights.
_CONFIG = 'config.json'
_SINGLE, _INDEX = 'model.safetensors', 'model.safetensors.index.json'
_SETTINGS = (
  *(_CONFIG, _INDEX),
  *('tokenizer.json', 'tokenizer.model', 'vocab.json', 'merges.txt'),
  *('tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json'),
)


@dataclasses.dataclass(frozen=True)
class Name:
  """A repository of the Hub at a revision, and a path in it."""

  given: str  # as the user wrote it
  kind: str  # 'model' or 'dataset'
  repository: str  # ORG/NAME
  revision: str  # a branch, a tag or a commit; '' for the main branch
  path: str  # '' for the root

  @property
  def is_file(self) -> bool:
    """Whether the path is that of a file of a model."""
    return self.path.endswith(_FILE_EXTENSIONS)


# The commit of each repository and revision that this process has asked for.
_commits: dict[str, str] = {}


def facts() -> dict[str, Any]:
  """The commits that this process has used, for a manifest; {} for none."""
  return {'hub_commits': dict(sorted(_commits.items()))} if _commits else {}


def model_name(path: str) -> Name | None:
  """The model of the Hub that a path names; None for a path or another URL.

  Raises:
    UserError: it is a URL of the Hub, but not one of a model.
  """
  if path.startswith(PROTOCOL):
    name = _parse(path)
    if name is None or name.kind != 'model':
      raise UserError(
        f'{path} does not name a model of the Hugging Face Hub: expected '
        f'{PROTOCOL}ORG/NAME, {PROTOCOL}ORG/NAME@REVISION, or one of them with '
        'the path of a folder or a .gguf file in it.'
      )
    return name
  bare = _BARE.fullmatch(path)
  if not bare or path.endswith(_FILE_EXTENSIONS):
    return None
  filesystem, local_path = filesystems.filesystem_of(path)
  if filesystem.exists(local_path):
    return None
  return Name(path, 'model', bare[1], bare[2] or '', '')


def _parse(url: str) -> Name | None:
  """The parts of a URL.

  >>> _parse('hf://datasets/org/name@refs/convert/parquet/a/0.parquet').revision
  'refs/convert/parquet'
  """
  parts = _URL.fullmatch(url)
  if not parts:
    return None
  datasets, repository, revision, path = parts.groups('')
  kind = 'dataset' if datasets else 'model'
  path = path.strip('/')
  return Name(url, kind, repository, urllib.parse.unquote(revision), path)


def local(path: str, weights: bool = True) -> str:
  """The canonical path of a model; one of the Hub is downloaded first.

  Args:
    path: A path, a URL, or the name of a model of the Hub.
    weights: Whether to download the weights, too, and not only `config.json`
      and the tokenizer.

  Returns:
    A path as from `filesystems.canonical`.

  Raises:
    UserError: the Hub cannot be reached, or has no such model for this user.
  """
  name = model_name(path)
  if name is None:
    return filesystems.canonical(path)
  return _downloaded(name, weights)


@functools.cache
def _downloaded(name: Name, weights: bool) -> str:
  folder = posixpath.dirname(name.path) if name.is_file else name.path
  wanted = [posixpath.join(folder, file) for file in _SETTINGS]
  if name.is_file:
    wanted.append(name.path)
  snapshot = _snapshot(name, wanted)
  path = posixpath.join(snapshot, name.path).rstrip('/')
  if name.is_file:
    _check_there(name, snapshot, name.path)
  elif weights:
    _check_there(name, path, _CONFIG)
    index = files.read_json(posixpath.join(path, _INDEX)) or {}
    shards = sorted(set(index.get('weight_map', {'': _SINGLE}).values()))
    _snapshot(name, [posixpath.join(folder, shard) for shard in shards])
    _check_there(name, path, shards[0])
  return path


def _check_there(name: Name, folder: str, file: str) -> None:
  """Raises `UserError` if a model has no such file."""
  from huggingface_hub import constants

  filesystem, local_path = filesystems.filesystem_of(f'{folder}/{file}')
  if filesystem.exists(local_path):
    return
  if constants.HF_HUB_OFFLINE:  # huggingface_hub 0.x does not raise for these.
    raise UserError(f'{name.given}: {_offline(name)}')
  hint = ''
  if file == _CONFIG:
    hint = (
      ' A model has config.json, safetensors and a tokenizer. Of a repository '
      f'with GGUF files, name one file: {_root(name)}/FILE.gguf.'
    )
  elif file == _SINGLE:
    hint = (
      ' Weights in pickles (.bin) are not read, because opening one can run '
      'any program. Name a revision or a copy of the model with safetensors, '
      'or save it again with save_pretrained of transformers.'
    )
  raise UserError(f'{name.given} has no {file}.{hint}')


def _snapshot(name: Name, wanted: Sequence[str]) -> str:
  """The folder of a commit in the cache, with the wanted files that exist."""
  import huggingface_hub
  from huggingface_hub import constants

  key = _key(name)
  with _error_as_user_error(name):
    if key not in _commits and not constants.HF_HUB_OFFLINE:
      _ask(name)  # Fails soon, where a download would try again and again.
    # A commit would not record in the cache what the branch is.
    folder = huggingface_hub.snapshot_download(
      name.repository,
      revision=_commits.get(key, name.revision) or None,
      allow_patterns=list(wanted),
      local_files_only=constants.HF_HUB_OFFLINE,
    )
  if key not in _commits:
    _commits[key] = posixpath.basename(folder)
    logger.info('hub: %s is commit %s, in %s', key, _commits[key], folder)
  return folder


def pinned(url: str) -> str:
  """A URL with the commit of its revision, if it is one of the Hub.

  Raises:
    UserError: the Hub cannot be reached, or has no such repository.
  """
  name = _parse(url)
  if name is None:
    return url
  key = _key(name)
  if key not in _commits:
    with _error_as_user_error(name):
      _commits[key] = _ask(name)
    logger.info('hub: %s is commit %s', key, _commits[key])
  root = f'{_root(name)}@{_commits[key]}'
  return f'{root}/{name.path}' if name.path else root


def _ask(name: Name) -> str:
  """The commit of a revision."""
  import huggingface_hub

  info = huggingface_hub.HfApi().repo_info(
    name.repository,
    repo_type=name.kind,
    revision=name.revision or None,
    timeout=TIMEOUT,
  )
  commit = info.sha
  assert commit  # Only lists of repositories leave it out.
  return commit


def _root(name: Name) -> str:
  return f'{PROTOCOL}{"datasets/" * (name.kind == "dataset")}{name.repository}'


def _key(name: Name) -> str:
  return _root(name) + f'@{name.revision}' * bool(name.revision)


def read_errors(path: str) -> tuple[type[Exception], ...]:
  """Errors of reading a file of the Hub that are no `OSError`."""
  if not path.startswith(PROTOCOL):
    return ()
  from huggingface_hub import errors

  return (errors.HTTPError,)  # pyright: ignore[reportPrivateImportUsage]


@contextlib.contextmanager
def _error_as_user_error(name: Name) -> Iterator[None]:
  """Raises `UserError` for what the library raises, except for a full disk."""
  try:
    yield
  except (
    Exception
  ) as error:  # Each version and transport has errors of its own.
    if files.refusal(error):
      raise
    is_url = name.given.startswith(PROTOCOL)
    where = '' if is_url else 'there is no such local path, and as a Hub id: '
    raise UserError(f'{name.given}: {where}{_reason(name, error)}') from None


def _reason(name: Name, error: Exception) -> str:
  """Why a repository cannot be read, and what the user can do about it."""
  from huggingface_hub import constants, errors

  log_in = 'log in with `hf auth login`, or set HF_TOKEN.'
  if isinstance(error, errors.GatedRepoError):
    return f'access to it is gated. Ask for it on its page, and {log_in}'
  if isinstance(error, errors.RevisionNotFoundError):
    return (
      f'it has no revision {name.revision!r}: name a branch, tag or commit.'
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return (
      f'the Hub has no such {name.kind}, or it is private. Check the name. If it '
      f'is private, {log_in}'
    )
  if constants.HF_HUB_OFFLINE:
    return _offline(name)
  first = (str(error).splitlines() or [type(error).__name__])[0]
  cache = ', or set HF_HUB_OFFLINE=1 to use the cache' * (name.kind == 'model')
  return (
    f'cannot be read from {constants.ENDPOINT} ({first}). {_fix(name)}{cache}.'
  )


def _offline(name: Name) -> str:
  """Why a repository cannot be read without a network."""
  from huggingface_hub import constants

  if name.kind == 'dataset':
    why = 'a dataset of the Hub is read over the network'
    return f'{why}, but HF_HUB_OFFLINE is set. {_fix(name)}.'
  return (
    f'HF_HUB_OFFLINE is set, and the cache {constants.HF_HUB_CACHE} has no '
    f'whole copy. {_fix(name)}.'
  )


def _fix(name: Name) -> str:
  flag = ' --repo-type=dataset' * (name.kind == 'dataset')
  return (
    f'Run `hf download {name.repository}{flag} --local-dir DIR` where there is a '
    'network, and name DIR in its place'
  )
