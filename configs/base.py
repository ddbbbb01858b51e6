"""Every knob, with a value for a first run on one host, and the reason for it.

Not an experiment by itself: a config file is `base.get_config()` with edits,
see `demo.py` and `tiny.py`. Meanings, units and bounds are the fields' own, in
`infoprune_jax/config.py`. A knob can be set from the command line too:
`--config.train.seeds=0,1,2`.
"""

import math

from ml_collections import ConfigDict

# The terms of arXiv 2406.14124, both a token, so that long and short examples
# compare: the reference model's NLL, and the mean of -log of the words'
# frequencies, for which ours are the tokens' in the reference split.
INFORMATION = 'nll_sum / num_tokens'
INVERSE_FREQUENCY = 'unigram_nll_sum / num_tokens'
COMPRESSION = 'compressed_bytes / num_bytes'
# How unlike the frequencies of an example's tokens are: their standard
# deviation, as arXiv 2509.18577 takes it. Rounding may leave less than zero.
FREQUENCY_DEVIATION = (
  'sqrt(greatest(unigram_frequency_square_sum / num_tokens'
  ' - pow(unigram_frequency_sum / num_tokens, 2), 0))'
)


def _source(format: str, paths: tuple[str, ...], **columns: str) -> ConfigDict:
  fields = dict(
    text_column='text',
    id_column='',
    source_column='',
    split='',
    data_dir='',
    module='',
  )
  return ConfigDict({'format': format, 'paths': paths, **fields, **columns})


def text(*paths: str) -> ConfigDict:
  """A source of plain text: each file is a document."""
  return _source('text', paths)


def jsonl(*paths: str, **columns: str) -> ConfigDict:
  """A source of JSONL: each line is a document.

  Args:
    *paths: Files, folders, globs or URLs.
    **columns: `text_column`, `id_column`, `source_column`.
  """
  return _source('jsonl', paths, **columns)


def parquet(*paths: str, **columns: str) -> ConfigDict:
  """A source of Parquet: each row is a document; columns as in `jsonl`."""
  return _source('parquet', paths, **columns)


def hf_dataset(*paths: str, **columns: str) -> ConfigDict:
  """Folders of `datasets.Dataset.save_to_disk`; columns as in `jsonl`."""
  return _source('hf_dataset', paths, **columns)


def tfds(*names: str, split: str = 'train', **fields: str) -> ConfigDict:
  """TFDS datasets, by name or folder; also `data_dir`, columns as in `jsonl`."""
  return _source('tfds', names, split=split, **fields)


def seqio(*names: str, split: str = 'train', **fields: str) -> ConfigDict:
  """SeqIO tasks or mixtures; also `module`, columns as in `jsonl`."""
  # What `seqio.preprocessors.tokenize` leaves of T5's usual feature.
  fields.setdefault('text_column', 'targets_pretokenized')
  return _source('seqio', names, split=split, **fields)


def arm(keep: str, score: str = '', **fields: str | float) -> ConfigDict:
  """One rule of an arm; an arm of several is a tuple of them.

  Args:
    keep: What of the ranking, see `RuleConfig`.
    score: The SQL expression to rank by.
    **fields: Other fields of `RuleConfig`.
  """
  rule = dict(
    fraction=1.0,
    low=-math.inf,
    high=math.inf,
    temperature=1.0,
    unit='tokens',
    per='',
    seed=0,
    missing='refuse',
  )
  return ConfigDict({'score': score, 'keep': keep, **rule, **fields})


def model() -> ConfigDict:
  """A decoder of 1.2M parameters: a toy that a CPU trains in minutes."""
  return ConfigDict(
    dict(
      num_layers=4,
      embed_dim=128,
      mlp_dim=352,  # 8/3 of the width, as in Llama, in multiples of 32
      activation='swiglu',
      num_heads=4,
      num_kv_heads=2,
      head_dim=32,
      rope_theta=10_000.0,
      norm_epsilon=1e-6,
      qk_norm=False,  # True keeps attention sane at high learning rates
      logit_softcap=0.0,  # Gemma 2 has 30.0; only kernels='xla' can
      tie_embeddings=True,
      dtype='float32',  # 'bfloat16' on TPUs and GPUs
      scan_unroll=4,
      remat='none',  # what fits is fastest; else 'minimal', then 'full'
      loss_tile=2048,
      # 'splash' on a TPU, 'cudnn' on an NVIDIA GPU of compute capability 9.0
      # or later (not an A100, L4 or 4090), 'xla' anywhere. 'auto'
      # scores with cuDNN, but does not train with it: name it to do so.
      attention='auto',
      # When scoring: 'tpu' (v5e or later) and 'hopper' (H100, H200) never write
      # logits, in bfloat16; 'xla' anywhere.
      kernels='auto',
    )
  )


def training() -> ConfigDict:
  """A run of 2M tokens."""
  return ConfigDict(
    dict(
      num_steps=500,
      num_tokens=0,  # e.g. 20 a parameter, with num_steps=0
      num_flops=0.0,  # compares models of several sizes
      batch_size=16,
      gradient_accumulation_steps=1,  # more where a batch does not fit
      row_length=256,
      optimizer='adamw',  # 'muon' keeps one moment, 'adafactor' almost none
      learning_rate=3e-3,  # relative with 'adafactor': 1e-2 in T5X
      schedule='cosine',  # 'wsd' can go on: its steps do not know the last
      warmup_steps=50,
      decay_share=0.2,
      final_learning_rate_ratio=0.1,
      weight_decay=0.1,
      beta1=0.9,
      beta2=0.95,
      z_loss=0.0,  # 1e-4 in PaLM: keeps the softmax's denominator near one
      max_grad_norm=1.0,
      log_every=20,
      eval_every=100,
      checkpoint_every=250,
      checkpoint_minutes=0.0,  # where machines can be taken away: 10.0
      max_checkpoints=2,
      keep_checkpoints_every=0,
      on_bad_step='stop',
      max_loss_spike=0.0,
      watchdog_minutes=30.0,  # longer than an evaluation of `curve_tokens`
      profile_from=10,
      profile_steps=0,
      mixture=ConfigDict(),
      mixture_schedule=(),  # e.g. (base.phase(10_000, {'web': 1.0, ...}),)
      reader='grain',
    )
  )


def phase(from_step: int, weights: dict[str, float]) -> ConfigDict:
  """Weights of a mixture's sources that hold from a step on."""
  return ConfigDict(dict(from_step=from_step, weights=ConfigDict(weights)))


def checkpoint(path: str = '', step: int = -1) -> ConfigDict:
  """A model that scores: a run's folder and step, or a parameter file.

  For the difference between an early and the last step of the reference model:

    config.reference.others.early = base.checkpoint(step=250)
    arm('top', '(nll_sum_early - nll_sum) / num_tokens', fraction=0.5)
  """
  return ConfigDict(dict(path=path, step=step))


def scoring() -> ConfigDict:
  """Rows as long as in training: a model has seen no longer context."""
  return ConfigDict(
    dict(
      per_device_batch_size=32,
      row_length=256,
      window_overlap=64,
      dtype='float32',
    )
  )


def near_duplicates() -> ConfigDict:
  """As FineWeb (arXiv 2406.17557) has them.

  For arms such as

    arm('distinct', 'near_duplicate_group')

  Documents with 3 of 4 shingles in common are found with probability 0.77, with
  9 of 10 nearly always, with half of them in one case of twenty.
  """
  return ConfigDict(dict(ngram=5, bands=14, rows_per_band=8, seed=0))


def get_config() -> ConfigDict:
  """The base config; `corpus.sources` is left for the experiment to fill."""
  config = ConfigDict()
  config.corpus = ConfigDict(
    dict(
      on_bad_row='refuse',
      max_bytes_per_source=0,
      reference_share=0.25,
      heldout_share=0.1,
      seed=0,
      num_parts=16,
      num_workers=0,
      beam_options=(),  # e.g. ('--runner=DataflowRunner', ...)
    )
  )
  config.corpus.sources = ConfigDict(sort_keys=False)
  config.vocabulary = ConfigDict(
    dict(
      path='',
      bos_id=-1,
      eos_id=-1,
      size=4096,
      type='unigram',
      train_bytes=2_000_000,
    )
  )
  config.mesh = ConfigDict(
    dict(
      data=-1,
      fsdp=1,
      tensor=1,
      sequence=1,
      dcn_data=1,  # the number of slices, where TPUs come in several
      dcn_fsdp=1,
      # E.g. {'embed': ('fsdp', 'sequence')}: parameters over all of these.
      rules=ConfigDict(),
    )
  )
  config.reference = ConfigDict(
    dict(
      model=model(),
      training=training(),
      seed=0,
      folds=1,
      checkpoint=checkpoint(),  # trained here, the last step
      others=ConfigDict(),
    )
  )
  config.score = scoring()
  config.near_duplicates = near_duplicates()
  config.select = ConfigDict()
  config.select.arms = ConfigDict(
    dict(
      full=arm('all'),
      random=arm('random', fraction=0.5),
      top_nll=arm('top', INFORMATION, fraction=0.5),
      top_sum=arm('top', f'{INFORMATION} + {INVERSE_FREQUENCY}', fraction=0.5),
      bottom_nll=arm('bottom', INFORMATION, fraction=0.5),
    ),
    sort_keys=False,  # The report shows arms in this order.
  )
  config.model = model()
  config.train = ConfigDict(dict(arms=(), seeds=(0, 1), training=training()))
  config.evaluate = ConfigDict(dict(scoring=scoring(), curve_tokens=50_000))
  config.report = ConfigDict(
    dict(
      baseline='random',
      bootstrap_samples=1000,
      num_examples=10,
      # E.g. ConfigDict({'code': ('code-*',), 'talk': ('irc', '*-podcasts')}):
      # tables have a row a kind, too; sources of none are of kind 'other'.
      kinds=ConfigDict(),
    )
  )
  config.labels = ConfigDict(
    dict(
      path='',
      text_column='text',
      label_column='label',
      group_column='',
      scores=ConfigDict(
        dict(
          nll=INFORMATION,
          bits_per_byte='nll_sum / ln(2) / num_bytes',
          unigram_mean=INVERSE_FREQUENCY,
          unigram_deviation=FREQUENCY_DEVIATION,
          paper_sum=f'{INFORMATION} + {INVERSE_FREQUENCY}',
          compression=COMPRESSION,
          length='num_tokens',
        ),
        sort_keys=False,  # The table shows scores in this order.
      ),
      bootstrap_samples=1000,
      seed=0,
    )
  )
  config.export = ConfigDict(
    dict(
      arms=(),
      # 'jsonl' (.jsonl.zst) and 'parquet' have every field of the rows that an
      # arm keeps; 'array_record' (for MaxText) and 'tfds' have id, source and
      # text; 'scores' is a table of all documents, 'dolma_attributes' has a
      # line for each line of the sources: both say what each arm keeps.
      formats=('jsonl', 'scores'),
      folder='',
      places=False,  # The default id of a row is file and row already.
    )
  )
  return config
