"""Vocabularies as other programs write them, trained on a few lines."""

import functools
import io
import json
import pathlib

import sentencepiece
from tokenizers import (
  AddedToken,
  Tokenizer,
  decoders,
  models,
  pre_tokenizers,
  processors,
  trainers,
)

from infoprune_jax.config import corpus as corpus_config
from infoprune_jax.tokens import vocabulary_files
from infoprune_jax.tokens.vocabulary import Vocabulary

LINES = [
  f'line {n:b} of a corpus with {n**5:x} and {n**7 % 9973:o} in it </s>'
  for n in range(99)
]
SPECIAL = ('<|endoftext|>', '<s>', '</s>', '<unk>')
ORDINARY = '|||NAME|||'  # An added token that is not marked as special.


def settings_of(path, bos_id: int = -1, eos_id: int = -1):
  return corpus_config.VocabularyConfig(
    path=str(path),
    bos_id=bos_id,
    eos_id=eos_id,
    size=340,
    type='bpe',
    train_bytes=1,
  )


def opened(path, **ids: int) -> Vocabulary:
  return vocabulary_files.open_given(settings_of(path, **ids))


@functools.cache
def byte_level() -> str:
  """A byte-level BPE that would add tokens, cut, pad and drop out."""
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    LINES,
    trainers.BpeTrainer(
      vocab_size=320,
      special_tokens=list(SPECIAL),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.add_tokens([AddedToken(ORDINARY, normalized=False)])
  end = tokenizer.token_to_id('</s>')
  tokenizer.post_processor = processors.TemplateProcessing(
    single='</s> $A </s>', special_tokens=[('</s>', end)]
  )
  tokenizer.enable_truncation(3)
  tokenizer.enable_padding(length=9)
  tokenizer.model.dropout = 0.5
  return tokenizer.to_str()


@functools.cache
def unigram() -> str:
  """One whose pieces spell its special tokens, and that knows few letters."""
  tokenizer = Tokenizer(models.Unigram())
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  tokenizer.train_from_iterator(
    LINES,
    trainers.UnigramTrainer(
      vocab_size=80,
      special_tokens=['<unk>', '<s>', '</s>'],
      unk_token='<unk>',
      show_progress=False,
    ),
  )
  return tokenizer.to_str()


def sentence_model(**options) -> bytes:
  """A model of SentencePiece's own making."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LINES),
    model_writer=model,
    vocab_size=60,
    minloglevel=2,
    **options,
  )
  return model.getvalue()


def in_folder(path: pathlib.Path, tokenizer: str, **beside) -> pathlib.Path:
  """A tokenizer.json in `path`, with other files of JSON beside it."""
  path.mkdir(parents=True, exist_ok=True)
  (path / 'tokenizer.json').write_text(tokenizer)
  for name, value in beside.items():
    (path / f'{name}.json').write_text(json.dumps(value))
  return path
