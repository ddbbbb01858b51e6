"""A corpus and its vocabulary, and their validation. Standard library only."""

import dataclasses
from collections.abc import Mapping

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
  check_seeds,
)

SPLITS = ('reference', 'scored', 'heldout')
FILE_FORMATS = ('text', 'jsonl', 'parquet', 'hf_dataset')
SOURCE_FORMATS = (*FILE_FORMATS, 'tfds', 'seqio')
SPLIT_BY = ('content', 'near_duplicate_group')
ON_BAD_RECORD = ('refuse', 'drop')
VOCABULARY_TYPES = ('unigram', 'bpe')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
  """Where the documents of one source are.

  Formats: 'text', where a file is a document; 'jsonl' and 'parquet', where a
  record is a document; 'hf_dataset', a folder that
  `datasets.Dataset.save_to_disk` wrote; 'tfds', a TFDS dataset; 'seqio', a
  registered SeqIO task or mixture.
  """

  format: str
  paths: tuple[str, ...]  # files, folders, globs, URLs; names of TFDS and SeqIO
  # The column of the text in a record; 'a.b' is field b of column a.
  text_column: str = 'text'
  # The column of a string, integer or UUID, unique within a source; '' for the
  # format's default id.
  id_column: str = ''
  # The column of a name that replaces the name of the source; '' for none.
  source_column: str = ''
  # Further columns to keep with the documents, as texts, for rules and exports.
  keep_columns: tuple[str, ...] = ()
  split: str = ''  # of a TFDS dataset or a SeqIO task; '' for files
  data_dir: str = ''  # of TFDS; '' for the default of TFDS
  # The module that registers the SeqIO task; '' for none.
  module: str = ''
  # Limits in bytes of text; 0 for none. Longer documents are left out.
  max_document_bytes: int = 0
  # A seeded draw of distinct texts, with their copies, in place of
  # `corpus.max_bytes_per_source`.
  max_bytes: int = 0
  # Of the held-out split; what is above it is scored.
  max_heldout_bytes: int = 0
  # Whether all of it is held out, as a validation set of your own.
  heldout: bool = False

  def __post_init__(self):
    check_choice('source.format', self.format, SOURCE_FORMATS)
    if not self.paths:
      raise UserError('source.paths is empty: give files, folders or globs.')
    if self.format != 'text' and not self.text_column:
      raise UserError('source.text_column is empty: name the text column.')
    if self.format == 'text' and self.keep_columns:
      raise UserError(
        f"source.keep_columns is {self.keep_columns}, but format='text' has no "
        'columns: leave it empty.'
      )
    if len(set(self.keep_columns)) < len(self.keep_columns):
      raise UserError(
        f'source.keep_columns must be distinct, got {self.keep_columns}.'
      )
    for name in ('max_document_bytes', 'max_bytes', 'max_heldout_bytes'):
      check_range(f'source.{name}', getattr(self, name), 0, 2**62)
    if self.heldout and self.max_heldout_bytes:
      raise UserError(
        f'source.max_heldout_bytes is {self.max_heldout_bytes}, but a source '
        'with heldout=True holds out everything: limit it by max_bytes.'
      )
    if (self.split == '') != (self.format in FILE_FORMATS):
      raise UserError(
        f"source.split is {self.split!r}: format='{self.format}' "
        + (
          'has no splits: leave it empty.'
          if self.split
          else "needs one, such as 'train'."
        )
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
  """The documents to read, their split, and the number of shards."""

  sources: Mapping[str, SourceConfig]
  # 'refuse' stops at the first bad record, 'drop' counts them. Both stop at a
  # file whose records are all bad.
  on_bad_record: str = 'refuse'
  max_bytes_per_source: int = 0  # a seeded draw of whole documents; 0 for all
  # The fraction of distinct texts that train the reference model. 0 if a model
  # from elsewhere scores every text (reference.checkpoint.path).
  reference_fraction: float = 0.25
  # The fraction of distinct texts for evaluation. 0 if no arm is trained, or if
  # some sources are held out. The rest is scored.
  heldout_fraction: float = 0.1
  # 'content': copies of a text are in one split. 'near_duplicate_group': groups
  # of near-duplicates are, too. They are found by `near_duplicates`, in n-grams of
  # words, and without comparing pairs.
  split_by: str = 'content'
  seed: int  # of the draw and the split
  num_shards: int = 16  # of the token store, and so of the score table
  num_workers: int = 0  # processes; 0 for one per core
  # Options of an Apache Beam pipeline, which then replaces the processes, such
  # as ('--runner=DataflowRunner', ...); () for no pipeline.
  beam_options: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.sources:
      raise UserError(
        'corpus.sources is empty: add one, for instance '
        "config.corpus.sources.mine = base.jsonl('data/*.jsonl.zst')."
      )
    if all(source.heldout for source in self.sources.values()):
      raise UserError(
        f'corpus.sources: all of them ({", ".join(self.sources)}) have '
        'heldout=True, which leaves nothing to score: add a source without it.'
      )
    check_choice('corpus.on_bad_record', self.on_bad_record, ON_BAD_RECORD)
    check_choice('corpus.split_by', self.split_by, SPLIT_BY)
    check_positive('corpus', self, 'num_shards')
    if self.reference_fraction + self.heldout_fraction >= 1.0:
      raise UserError(
        'corpus.reference_fraction + corpus.heldout_fraction must leave documents '
        f'to score, got {self.reference_fraction} + {self.heldout_fraction}.'
      )
    for name in ('reference_fraction', 'heldout_fraction'):
      check_range(f'corpus.{name}', getattr(self, name), 0, 1)
    check_range(
      'corpus.max_bytes_per_source', self.max_bytes_per_source, 0, 2**62
    )
    check_range('corpus.num_workers', self.num_workers, 0, 4096)
    check_seeds('corpus.seed', self.seed)

  @property
  def holds_out(self) -> bool:
    """Whether there is text to evaluate on."""
    return self.heldout_fraction > 0 or any(
      source.heldout for source in self.sources.values()
    )

  @property
  def kept_columns(self) -> tuple[str, ...]:
    """The columns that any source keeps, each once."""
    names = (n for one in self.sources.values() for n in one.keep_columns)
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
  """A vocabulary: given, or a SentencePiece model trained on the corpus."""

  # A SentencePiece .model, a tokenizer.json of Hugging Face, a folder with one
  # or with GPT-2's vocab.json and merges.txt, the id of a model on the Hub, or a
  # GGUF file; '' for that of the model in reference.checkpoint.path, or without
  # such a model, to train one.
  path: str = ''
  # Starts a document, before its first token; -1 for the id in the files.
  bos_id: int = -1
  eos_id: int = -1  # ends a document in training; -1 for the id in the files
  size: int = 4096  # tokens, if it is trained
  type: str = 'unigram'  # 'unigram' (encodes faster) or 'bpe' (trains faster)
  train_bytes: int = 2_000_000  # of the reference split, if it is trained

  def __post_init__(self):
    check_choice('vocabulary.type', self.type, VOCABULARY_TYPES)
    check_positive('vocabulary', self, 'size', 'train_bytes')
    # 256 bytes, four special tokens, and some tokens of text.
    check_range('vocabulary.size', self.size, 320, 2**20)
    for name in ('bos_id', 'eos_id'):
      value = getattr(self, name)
      check_range(f'vocabulary.{name}', value, -1, 2**31 - 1)
      if value >= 0 and not self.path:
        raise UserError(
          f'vocabulary.{name} is {value}, but a trained vocabulary has its own: '
          'set it to -1, or name a vocabulary in vocabulary.path.'
        )
