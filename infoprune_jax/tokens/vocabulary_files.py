"""Opens vocabularies that other programs wrote.

A SentencePiece .model, a tokenizer.json of Hugging Face, or a folder with one
or with GPT-2's vocab.json and merges.txt.
"""

import contextlib
import json
import operator
import posixpath
from collections.abc import Iterator
from typing import Any

from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems
from infoprune_jax.tokens import vocabulary
from infoprune_jax.tokens.encoders import (
  SentencePieceEncoder,
  TokenizersEncoder,
)
from infoprune_jax.tokens.vocabulary import Vocabulary

TOKENIZER_FILE = 'tokenizer.json'
GPT2_FILES = ('vocab.json', 'merges.txt')
GPT2_SPECIAL = '<|endoftext|>'
# Beside a tokenizer.json; the first that names a token decides.
SETTINGS_FILES = ('tokenizer_config.json', 'special_tokens_map.json')
ADDED_FILE = 'added_tokens.json'  # ids by text
NAMES = ('bos', 'eos')
MAX_LISTED = 30  # special tokens in a message
Encoder = SentencePieceEncoder | TokenizersEncoder


def open_given(config: VocabularyConfig) -> Vocabulary:
  """The vocabulary that `config.path` names.

  Special ids are the config's, or where they are -1, those the files name.

  Raises:
    UserError: there is none, it cannot be read, or nothing says which ids mark
      the start and the end of a document.
  """
  try:
    kind, model, named, added = _read(filesystems.canonical(config.path))
    encoder = (
      SentencePieceEncoder(model)
      if kind == vocabulary.SENTENCEPIECE
      else TokenizersEncoder(model)
    )
  except OSError as error:
    raise UserError(
      f'vocabulary.path: cannot read {config.path!r}: {error}'
    ) from None
  except UserError:
    raise
  except ValueError as error:
    raise UserError(
      f'vocabulary.path: {config.path!r} cannot be opened ({error}): expected '
      "a SentencePiece .model, or a tokenizer.json of Hugging Face's tokenizers."
    ) from None
  _check_added(config, encoder, added)
  ids = _special_ids(config, encoder, named)
  _check_ids(config, encoder, ids)
  given = Vocabulary(kind, model, ids['bos'], ids['eos'])
  try:
    given.encode_all(vocabulary.PROBES)
  except Exception as error:
    if type(error) is not Exception:  # The class that `tokenizers` raises.
      raise
    raise UserError(
      f'vocabulary.path: {config.path!r} cannot encode every text: {error}. '
      'Give it an unknown token, or byte fallback.'
    ) from None
  return given


def _read(path: str) -> tuple[str, bytes, dict[str, str], dict[str, int]]:
  """Reads the files of a vocabulary.

  Returns:
    The kind; the model; the text of BOS and EOS, where the files name it; and
    the ids of tokens that were added to the model, by text.
  """
  filesystem, name = filesystems.filesystem_of(path)
  if not filesystem.isdir(name):
    model = files.read_bytes(path)
    # No SentencePiece model starts like a JSON object.
    if not (path.endswith('.json') or model.lstrip().startswith(b'{')):
      return vocabulary.SENTENCEPIECE, model, {}, {}
    folder = posixpath.dirname(path)
    return vocabulary.TOKENIZERS, model, _named_in(folder), _added_in(folder)
  if filesystem.exists(posixpath.join(name, TOKENIZER_FILE)):
    model = files.read_bytes(posixpath.join(path, TOKENIZER_FILE))
    return vocabulary.TOKENIZERS, model, _named_in(path), _added_in(path)
  if all(filesystem.exists(posixpath.join(name, f)) for f in GPT2_FILES):
    added = _added_in(path)
    model, named = _gpt2(path, added)
    return vocabulary.TOKENIZERS, model, named, added
  raise UserError(
    f'vocabulary.path: the folder {path!r} has neither {TOKENIZER_FILE} nor '
    f'{" and ".join(GPT2_FILES)}. A SentencePiece model is named by its file.'
  )


def _settings(folder: str) -> Iterator[dict[str, Any]]:
  """The settings files beside a tokenizer; the first has priority."""
  for file in SETTINGS_FILES:
    with contextlib.suppress(FileNotFoundError):
      yield _json(posixpath.join(folder, file))


def _named_in(folder: str) -> dict[str, str]:
  """The text of `bos` and `eos`, where settings beside a tokenizer name it."""
  texts = {}
  for settings in _settings(folder):
    for name in NAMES:
      text = _content(settings.get(f'{name}_token'))
      if text is not None:
        texts.setdefault(name, text)
  return texts


def _content(token: Any) -> str | None:
  """The text of a token in settings, where it is a string or an object."""
  text = token.get('content') if isinstance(token, dict) else token
  return text if isinstance(text, str) else None


def _special_in(folder: str) -> set[str]:
  """The texts of all special tokens that settings name."""
  texts = set()
  for settings in _settings(folder):
    for name, value in settings.items():
      if name.endswith('_token'):
        texts.add(_content(value))
      elif name == 'additional_special_tokens' and isinstance(value, list):
        texts.update(map(_content, value))
  return texts - {None}


def _added_in(folder: str) -> dict[str, int]:
  """The ids of tokens that were added to a model, by text."""
  path = posixpath.join(folder, ADDED_FILE)
  try:
    added = _json(path)
  except FileNotFoundError:
    return {}
  for text, id_ in added.items():
    if type(id_) is not int or id_ < 0:
      raise UserError(
        f'vocabulary.path: {path} gives {text!r} the id {id_!r}, expected a '
        'number from 0 on.'
      )
  return added


def _check_added(
  config: VocabularyConfig, encoder: Encoder, added: dict[str, int]
) -> None:
  """Raises `UserError` where an added token has another id, or none."""
  for text, id_ in added.items():
    if encoder.id_of(text) != id_:
      raise UserError(
        f'vocabulary.path: {ADDED_FILE} beside {config.path!r} gives {text!r} '
        f'the id {id_}, but the tokenizer has it as {encoder.id_of(text)}. Ids '
        'of added tokens go on where the others end, without a gap. Save the '
        'tokenizer again as tokenizer.json.'
      )


def _json(path: str) -> dict[str, Any]:
  """The object in a JSON file."""
  try:
    value = json.loads(files.read_bytes(path))
  except ValueError as error:
    raise UserError(f'vocabulary.path: {path} is not JSON: {error}.') from None
  if not isinstance(value, dict):
    raise UserError(f'vocabulary.path: {path} is not a JSON object.')
  return value


def _gpt2(folder: str, added: dict[str, int]) -> tuple[bytes, dict[str, str]]:
  """A tokenizer.json of a byte-level BPE, and the special tokens' text."""
  vocab = _json(posixpath.join(folder, GPT2_FILES[0]))
  text = files.read_bytes(posixpath.join(folder, GPT2_FILES[1])).decode()
  merges = [x for x in text.splitlines() if x and not x.startswith('#version')]
  named = _named_in(folder)
  if GPT2_SPECIAL in vocab:
    named = dict.fromkeys(NAMES, GPT2_SPECIAL) | named
  special = _special_in(folder) | set(named.values())
  tokens = {text: vocab[text] for text in named.values() if text in vocab}
  tokens |= added
  prefixed = any(s.get('add_prefix_space') is True for s in _settings(folder))
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': prefixed,
    'trim_offsets': True,
    'use_regex': True,
  }
  tokenizer = {
    'version': '1.0',
    'added_tokens': [
      {
        'id': id_,
        'content': text,
        'single_word': False,
        'lstrip': False,
        'rstrip': False,
        'normalized': False,
        'special': text in special,
      }
      # The library numbers them in this order, whatever their ids.
      for text, id_ in sorted(tokens.items(), key=operator.itemgetter(1))
    ],
    'pre_tokenizer': byte_level,
    'decoder': byte_level,
    'model': {'type': 'BPE', 'vocab': vocab, 'merges': merges},
  }
  return json.dumps(tokenizer).encode(), named


def _special_ids(
  config: VocabularyConfig,
  encoder: Encoder,
  named: dict[str, str],
) -> dict[str, int]:
  """BOS and EOS: what the config sets, then what the files say."""
  ids = {}
  for name in NAMES:
    ids[name] = getattr(config, f'{name}_id')
    if ids[name] < 0 and isinstance(encoder, SentencePieceEncoder):
      ids[name] = getattr(encoder, f'{name}_id')
    elif ids[name] < 0 and name in named:
      id_ = encoder.id_of(named[name])
      if id_ is None:
        raise UserError(
          f'vocabulary.path: the settings beside {config.path!r} name '
          f'{named[name]!r} as {name}_token, but it has no such token. '
          + _how_to_set(encoder, [name])
        )
      ids[name] = id_
  missing = [name for name in NAMES if ids[name] < 0]
  if missing:
    meaning = {'bos': 'starts', 'eos': 'ends'}
    raise UserError(
      f'vocabulary.path: {config.path!r} does not say which token '
      f'{" and which ".join(f"{meaning[n]} a document ({n})" for n in missing)}'
      f'. {_how_to_set(encoder, missing)}'
    )
  return ids


def _how_to_set(encoder: Encoder, names: list[str]) -> str:
  """The special tokens, and the flags that choose among them."""
  tokens = [f'{text!r} ({id_})' for text, id_ in encoder.special_tokens.items()]
  more = f' and {len(tokens) - MAX_LISTED} more' * (len(tokens) > MAX_LISTED)
  listed = ', '.join(tokens[:MAX_LISTED]) + more if tokens else 'none'
  flags = ' and '.join(f'--config.vocabulary.{name}_id=ID' for name in names)
  return f'Its special tokens, with their ids: {listed}. Set {flags}.'


def _check_ids(
  config: VocabularyConfig, encoder: Encoder, ids: dict[str, int]
) -> None:
  for name, id_ in ids.items():
    if id_ >= encoder.size:
      raise UserError(
        f'vocabulary.{name}_id is {id_}, but {config.path!r} has ids from 0 to '
        f'{encoder.size - 1}. {_how_to_set(encoder, [name])}'
      )
