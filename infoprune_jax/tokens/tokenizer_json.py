"""A vocabulary as the tokenizer.json and settings that transformers loads."""

import json

import sentencepiece
import tokenizers

from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens.encoders import META_SPACE
from infoprune_jax.tokens.vocabulary import PROBES, TOKENIZERS, Vocabulary
from infoprune_jax.tokens.vocabulary_files import SETTINGS_FILES, TOKENIZER_FILE


def files_of(words: Vocabulary) -> dict[str, str]:
  """The files of a tokenizer, by name.

  Raises:
    UserError: a SentencePiece model has no equal there.
  """
  text = (
    words.model.decode()
    if words.kind == TOKENIZERS
    else _of_sentencepiece(words)
  )
  tokenizer = tokenizers.Tokenizer.from_str(text)
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': tokenizer.id_to_token(words.bos_id),
    'eos_token': tokenizer.id_to_token(words.eos_id),
    'clean_up_tokenization_spaces': False,
  }
  return {TOKENIZER_FILE: text, SETTINGS_FILES[0]: json.dumps(settings)}


def _of_sentencepiece(words: Vocabulary) -> str:
  """A SentencePiece model as `tokenizers` computes it."""
  model = sentencepiece.SentencePieceProcessor(model_proto=words.model)
  ids = range(model.GetPieceSize())
  pieces = [(model.IdToPiece(id_), model.GetScore(id_)) for id_ in ids]
  normal = [
    piece
    for id_, piece in enumerate(pieces)
    if not (model.IsControl(id_) or model.IsUnknown(id_) or model.IsByte(id_))
  ]
  # Scores of a BPE count its merges down; those of unigrams are logarithms.
  is_bpe = all(score == round(score) for _, score in normal)
  unknown = model.unk_id()
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {piece: id_ for id_, (piece, _) in enumerate(pieces)},
      _merges(normal),
      unk_token=pieces[unknown][0],
      fuse_unk=True,
      byte_fallback=True,
    )
    if is_bpe
    else tokenizers.models.Unigram(pieces, unknown, byte_fallback=True)
  )
  tokenizer.normalizer = tokenizers.normalizers.Replace(' ', META_SPACE)
  tokenizer.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Replace(META_SPACE, ' '),
    ]
  )
  tokenizer.add_special_tokens(
    [piece for id_, (piece, _) in enumerate(pieces) if model.IsControl(id_)]
  )
  _check_equal(words, tokenizer, [piece for piece, _ in normal])
  return tokenizer.to_str()


def _check_equal(
  words: Vocabulary, tokenizer: tokenizers.Tokenizer, pieces: list[str]
) -> None:
  """Raises `UserError` unless a tokenizer gives text the ids of a vocabulary.

  Of a text that holds every piece. Only META_SPACE itself differs: it is bytes
  to us, and a space to `tokenizers`.
  """
  probes = [probe.replace(META_SPACE, '') for probe in PROBES]
  for text in (*probes, ' '.join(pieces).replace(META_SPACE, ' ')):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if ids != words.encode(text).tolist():
      raise UserError(
        'The SentencePiece model of this vocabulary has no equal among '
        'tokenizers of Hugging Face: it normalises text, or is neither of '
        'unigrams nor BPE.'
      )


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
  """The merges of a BPE, of which a SentencePiece model has the results alone."""
  known = {piece for piece, _ in pieces}
  merges = [
    (-score, number, piece[:cut], piece[cut:])
    for number, (piece, score) in enumerate(pieces)
    for cut in range(1, len(piece))
    if piece[:cut] in known and piece[cut:] in known
  ]
  return [(left, right) for *_, left, right in sorted(merges)]
