"""Opens vocabularies that other programs wrote.

A SentencePiece .model, a tokenizer.json of Hugging Face, a folder with one or
with GPT-2's vocab.json and merges.txt, or the tokenizer in a GGUF file. If the
config names no vocabulary, it is that of the model from elsewhere that scores.
"""

import contextlib
import dataclasses
import json
import operator
import posixpath
from collections.abc import Iterator
from typing import Any

from infoprune_jax.config.corpus import VocabularyConfig
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import files, filesystems, hub, manifests
from infoprune_jax.runtime.workdir import vocabulary_dir
from infoprune_jax.tokens import gguf_file, vocabulary
from infoprune_jax.tokens.encoders import (
  SentencePieceEncoder,
  TokenizersEncoder,
)
from infoprune_jax.tokens.vocabulary import Vocabulary

TOKENIZER_FILE = 'tokenizer.json'
SENTENCEPIECE_FILE = 'tokenizer.model'
MODEL_SETTINGS = 'config.json'  # A Hugging Face folder has it.
# A run lies at most so deep in its workdir: train/ARM/seed-N.
_RUN_DEPTH = 3
GPT2_FILES = ('vocab.json', 'merges.txt')
_TOKENIZERS = (TOKENIZER_FILE, SENTENCEPIECE_FILE, GPT2_FILES[0])
GPT2_SPECIAL = '<|endoftext|>'
# Settings beside a tokenizer.json; the first file that names a token decides.
SETTINGS_FILES = ('tokenizer_config.json', 'special_tokens_map.json')
ADDED_FILE = 'added_tokens.json'  # ids by text
NAMES = ('bos', 'eos')
MAX_LISTED = 30  # special tokens in a message
Encoder = SentencePieceEncoder | TokenizersEncoder


def of_config(config: Config) -> Vocabulary | None:
  """The vocabulary that a config names, or else that of its model.

  The model is that of `reference.checkpoint.path`, or else of
  `train.init_from`. A Hugging Face folder and a
  GGUF file have their tokenizer in them. A run of ours, or a parameter file, has the vocabulary of the
  workdir that it lies in.

  Returns:
    None if there is none: it is trained on the reference split then.

  Raises:
    UserError: as `open_given`; or the model has no vocabulary, and there is no
      reference split to train one on.
  """
  if config.vocabulary.path:
    return open_given(config.vocabulary)
  path = config.reference.checkpoint.path or config.train.init_from
  if not path:
    return None
  path = hub.local(path, weights=False)
  given = dataclasses.replace(config.vocabulary, path=path)
  if path.endswith(gguf_file.EXTENSION):
    return open_given(given)
  filesystem, name = filesystems.filesystem_of(path)
  holds = {
    file: filesystem.exists(posixpath.join(name, file))
    for file in (*_TOKENIZERS, MODEL_SETTINGS)
  }
  if any(holds[file] for file in _TOKENIZERS):
    return open_given(given)
  folder = path
  for _ in range(_RUN_DEPTH):
    folder = posixpath.dirname(folder)
    beside = vocabulary_dir(folder)
    if manifests.read_manifest(beside, 'tokenize') is not None:
      return Vocabulary.load(beside)
  if not holds[MODEL_SETTINGS] and config.corpus.reference_fraction > 0:
    return None
  if not filesystem.exists(name):
    raise UserError(f'reference.checkpoint.path: there is no {path}.')
  raise UserError(
    f'There is no vocabulary for the model {path}: expected {TOKENIZER_FILE} or '
    f'{SENTENCEPIECE_FILE} in its folder, or for a model of ours the vocabulary/ '
    'of its workdir in a folder above it. Name the vocabulary that it was '
    'trained with in vocabulary.path.'
  )


def open_given(config: VocabularyConfig) -> Vocabulary:
  """The vocabulary that `config.path` names.

  Special ids are those of the config, or if -1, those that the files name.

  Raises:
    UserError: it is missing, it cannot be read, or the ids that start and end a
      document are unknown.
  """
  try:
    kind, model, named, added = _read(hub.local(config.path, weights=False))
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
      'Add an unknown token, or byte fallback.'
    ) from None
  return given


def _read(path: str) -> tuple[str, bytes, dict[str, str], dict[str, int]]:
  """Reads the files of a vocabulary.

  Returns:
    The kind; the model; the texts of BOS and EOS, if the files name them; and
    the ids of tokens that were added to the model, by text.
  """
  if path.endswith(gguf_file.EXTENSION):
    model, named = gguf_file.tokenizer(path)
    return vocabulary.TOKENIZERS, model, named, {}
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
  if filesystem.exists(posixpath.join(name, SENTENCEPIECE_FILE)):
    model = files.read_bytes(posixpath.join(path, SENTENCEPIECE_FILE))
    return vocabulary.SENTENCEPIECE, model, {}, {}
  if all(filesystem.exists(posixpath.join(name, f)) for f in GPT2_FILES):
    added = _added_in(path)
    model, named = _gpt2(path, added)
    return vocabulary.TOKENIZERS, model, named, added
  raise UserError(
    f'vocabulary.path: the folder {path!r} has none of {TOKENIZER_FILE}, '
    f'{SENTENCEPIECE_FILE}, and {" with ".join(GPT2_FILES)}. Name a '
    'SentencePiece model of another name by its file.'
  )


def _settings(folder: str) -> Iterator[dict[str, Any]]:
  """The settings files beside a tokenizer; the first has priority."""
  for file in SETTINGS_FILES:
    with contextlib.suppress(FileNotFoundError):
      yield _json(posixpath.join(folder, file))


def _named_in(folder: str) -> dict[str, str]:
  """The texts of `bos` and `eos`, if settings beside a tokenizer name them."""
  texts = {}
  for settings in _settings(folder):
    for name in NAMES:
      text = _content(settings.get(f'{name}_token'))
      if text is not None:
        texts.setdefault(name, text)
  return texts


def _content(token: Any) -> str | None:
  """The text of a token in settings, which is a string or an object."""
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
  """Raises `UserError` if an added token has another id or none."""
  for text, id_ in added.items():
    if encoder.id_of(text) != id_:
      raise UserError(
        f'vocabulary.path: {ADDED_FILE} beside {config.path!r} gives {text!r} '
        f'the id {id_}, but its id in the tokenizer is {encoder.id_of(text)}. '
        'Ids of added tokens must follow the other ids without a gap. Save the '
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
  """The ids of BOS and EOS: those of the config, else those of the files."""
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
  if ids['bos'] < 0 and 'eos' in named:
    # As of Qwen: the settings name every special token that there is.
    ids['bos'] = ids['eos']
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
