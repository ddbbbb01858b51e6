"""GGUF files of llama.cpp: their metadata, their tensors and their tokenizer."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import filesystems
from infoprune_jax.tokens import pretokens

EXTENSION = '.gguf'
# What the types of tokens mean, as GGUF numbers them.
_CONTROL, _USER_DEFINED = 3, 4
_BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': False,
  'trim_offsets': True,
  'use_regex': False,
}


@dataclasses.dataclass(frozen=True)
class GgufFile:
  """An open file."""

  path: str
  reader: Any  # a gguf.GGUFReader, which maps the file into memory

  @functools.cached_property
  def tensors(self) -> dict[str, Any]:
    """A `gguf.ReaderTensor` for each name."""
    return {tensor.name: tensor for tensor in self.reader.tensors}

  def get(self, key: str, default: Any = None) -> Any:
    """A value of the metadata: a number, a string, or a list of these."""
    field = self.reader.fields.get(key)
    return default if field is None else field.contents()

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor, the slowest axis first."""
    return tuple(int(size) for size in reversed(self.tensors[name].shape))

  def read(self, name: str) -> np.ndarray:
    """A tensor, dequantised, float32.

    Raises:
      UserError: the library does not dequantise its type.
    """
    import gguf  # pyright: ignore[reportMissingImports]

    tensor = self.tensors[name]
    try:
      values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
      raise UserError(
        f'{self.path}: tensor {name} is of type {tensor.tensor_type.name}, '
        f'which gguf {_version()} does not dequantise. Use a file of F32, F16, '
        'BF16, Q8_0, Q4_0, Q4_1, Q4_K or Q6_K.'
      ) from None
    return values.astype(np.float32, copy=False).reshape(self.shape(name))


def _version() -> str:
  import importlib.metadata

  return importlib.metadata.version('gguf')


@functools.lru_cache(maxsize=2)  # Opening takes seconds: it reads all tokens.
def open_file(path: str) -> GgufFile:
  """Opens a GGUF file.

  Raises:
    UserError: there is no such file, it is damaged, or the package `gguf` is
      not installed.
  """
  try:
    import gguf  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError(
      f'{path} is a GGUF file, which needs the package gguf: pip install '
      "'infoprune_jax[hf]'."
    ) from None
  try:
    return GgufFile(path, gguf.GGUFReader(filesystems.local_copy(path)))
  except (OSError, ValueError, KeyError, IndexError) as error:
    raise UserError(
      f'{path} is no whole GGUF file ({error}): download it again.'
    ) from None


def tokenizer(path: str) -> tuple[bytes, dict[str, str]]:
  """The tokenizer in a GGUF file.

  Returns:
    A tokenizer.json, and the text of `bos` and `eos`, where the file names
    them.

  Raises:
    UserError: the file has no byte-level BPE, or one that cuts words in a way
      that is not known here.
  """
  file = open_file(path)
  kind = file.get('tokenizer.ggml.model')
  if kind != 'gpt2':
    raise UserError(
      f'vocabulary.path: the tokenizer in {path} is of kind {kind!r}, expected '
      "'gpt2', a byte-level BPE. Name the tokenizer.json or tokenizer.model of "
      'the model instead.'
    )
  tokens = file.get('tokenizer.ggml.tokens')
  pre = file.get('tokenizer.ggml.pre', 'default')
  given = {
    'version': '1.0',
    'added_tokens': _added_tokens(file),
    'normalizer': {'type': 'NFC'} if pre == 'qwen2' else None,
    'pre_tokenizer': _pre_tokenizer(path, pre),
    'decoder': _BYTE_LEVEL,
    'model': {
      'type': 'BPE',
      'vocab': {token: id_ for id_, token in enumerate(tokens)},
      'merges': file.get('tokenizer.ggml.merges'),
    },
  }
  ids = {
    name: file.get(f'tokenizer.ggml.{name}_token_id') for name in ('bos', 'eos')
  }
  named = {name: tokens[id_] for name, id_ in ids.items() if id_ is not None}
  return json.dumps(given).encode(), named


def _added_tokens(file: GgufFile) -> list[dict[str, Any]]:
  """The control tokens and the user's, as tokenizer.json has them."""
  tokens = file.get('tokenizer.ggml.tokens')
  return [
    {
      'id': id_,
      'content': tokens[id_],
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': type_ == _CONTROL,
    }
    for id_, type_ in enumerate(file.get('tokenizer.ggml.token_type'))
    if type_ in (_CONTROL, _USER_DEFINED)
  ]


def _pre_tokenizer(path: str, pre: str) -> dict[str, Any]:
  """The pre-tokenizer that llama.cpp calls `pre`, as tokenizer.json has it."""
  by_regex = {**_BYTE_LEVEL, 'use_regex': True}
  if pre in ('gpt-2', 'gpt2'):
    return by_regex
  if pre == 'smollm':
    parts = [pretokens.DIGITS_FIRST, by_regex]
  elif pre in ('llama-bpe', 'qwen2'):
    pattern = pretokens.LLAMA3 if pre == 'llama-bpe' else pretokens.QWEN2
    parts = [pretokens.split_by(pattern), _BYTE_LEVEL]
  else:
    raise UserError(
      f'vocabulary.path: the tokenizer in {path} cuts words as {pre!r} does, '
      'expected gpt-2, smollm, llama-bpe or qwen2. Name the tokenizer.json of '
      'the model instead.'
    )
  return {'type': 'Sequence', 'pretokenizers': parts}
