r"""Where does pruning by information pay? A cell of the map in docs/experiment.md.

Command, after tools/make_experiment_corpus.py:
  python -m infoprune_jax.main --config=configs/experiment.py:CELL[,SCALE] \
      --workdir=runs/experiment/CELL
All cells: tools/run_experiment.py.
Expect: about fifteen minutes on a core of a CPU; `center` takes four times as long.

CELL is a name in CELLS. It differs from `center` in one factor. `center` trains
all arms, and the other cells the six of `_map_arms`. SCALE is a name in
SCALES; the default is for a CPU.

The cells `natural` and `natural_smollm2` read texts of yours: see
configs/natural_texts.py. The second needs scores by SmolLM2-135M:
  python -m infoprune_jax.main --config=configs/experiment.py:smollm2 \
      --workdir=runs/experiment/smollm2 --job=score
"""

import dataclasses
import json
import math
import pathlib

from ml_collections import ConfigDict

from configs import base, demo, natural_texts
from infoprune_jax.config.validation import UserError, check_choice

CORPUS = pathlib.Path('runs/experiment/corpus')
SMOLLM2 = pathlib.Path('runs/experiment/smollm2')  # a workdir with its scores
NLL = 'nll_sum / num_bytes'
# Between an early and the last step of the reference model, in nats per byte.
REDUCIBLE = '(nll_sum_early - nll_sum) / num_bytes'
CONTEXT_GAIN = 'nll_sum / unigram_nll_sum'
WRITTEN = tuple(demo.WRITTEN)
GENERATED = ('generated_mlir', 'generated_protobuf', 'generated_python')
NOISE = ('noise_characters', 'noise_words')
SOURCES = (*WRITTEN, *GENERATED, *NOISE, 'copies')
KEEP = 0.5


@dataclasses.dataclass(frozen=True)
class Cell:
  """A corpus, and how large the reference model is."""

  generated: float = 0.5  # fraction of what is neither copies nor noise
  copies: float = 0.0  # fraction of bytes in groups of 2 to 100 equal texts
  noise: float = 0.0  # fraction of bytes
  epochs: float = 1.0  # of the arm that keeps all
  reference: str = '1/3'  # FLOPs per token, over those of the target
  texts: str = 'packages'  # or 'natural', of configs/natural_texts.py


CELLS = {
  'center': Cell(),
  **{
    f'generated_{g:.0%}'[:-1]: Cell(generated=g) for g in (0, 0.25, 0.36, 0.7)
  },
  **{f'copies_{c:.0%}'[:-1]: Cell(copies=c) for c in (0.1, 0.3)},
  **{f'noise_{n:.0%}'[:-1]: Cell(noise=n) for n in (0.05, 0.2)},
  'epochs_quarter': Cell(epochs=0.25),
  'epochs_half': Cell(epochs=0.5),
  **{f'epochs_{e}': Cell(epochs=e) for e in (2, 4, 8, 16)},
  'reference_small': Cell(reference='1/10'),
  'reference_equal': Cell(reference='1'),
  'natural': Cell(texts='natural'),
  'natural_smollm2': Cell(texts='natural'),
}


@dataclasses.dataclass(frozen=True)
class Scale:
  """Models, and how much of the corpus is used. Shapes: layers, width, MLP."""

  num_bytes: int  # of the texts that are scored, or train the reference model
  longest: tuple[int, int]  # bytes of a text: written, generated
  heldout_bytes: int  # of each source
  target: tuple[int, int, int]
  references: dict[str, tuple[int, int, int]]
  head_dim: int
  vocab_size: int
  bytes_per_token: float  # about, in `center`
  batch_size: int
  sequence_length: int
  learning_rate: float
  dtype: str


SCALES = {
  '0.5m': Scale(
    num_bytes=1_800_000,
    longest=(8_000, 24_000),
    heldout_bytes=40_000,
    target=(2, 96, 256),
    references={'1': (2, 96, 256), '1/3': (1, 48, 128), '1/10': (1, 16, 48)},
    head_dim=16,
    vocab_size=2048,
    bytes_per_token=2.6,
    batch_size=8,
    sequence_length=128,
    learning_rate=0.015,
    dtype='float32',
  ),
  '3m': Scale(
    num_bytes=12_000_000,
    longest=(24_000, 100_000),
    heldout_bytes=80_000,
    target=(4, 192, 512),
    references={
      '1': (4, 192, 512),
      '1/3': (2, 128, 352),
      '1/10': (1, 64, 160),
    },
    head_dim=64,
    vocab_size=4096,
    bytes_per_token=2.9,
    batch_size=32,
    sequence_length=256,
    learning_rate=0.01,
    dtype='bfloat16',
  ),
}


def get_config(argument: str = 'center') -> ConfigDict:
  """A cell, at a scale: three seeds, 50 % of the tokens kept.

  Args:
    argument: A name in CELLS, or 'smollm2' to score the texts of `natural`; after
      a comma, a name in SCALES.
  """
  name, _, scale_name = argument.partition(',')
  check_choice('The cell', name, (*CELLS, 'smollm2'))
  check_choice('The scale', scale_name or '0.5m', tuple(SCALES))
  scale = SCALES[scale_name or '0.5m']
  config = base.get_config()
  if name == 'smollm2':
    _set_scoring(config, scale)
    return config
  cell = CELLS[name]
  _set_models(config, cell, scale)
  config.train.seeds = (0, 1, 2)
  config.train.budgets = (0.7, 1.0, 1.4)
  if name == 'epochs_half':  # At twice the budget `full` sees all text once.
    config.train.budgets = (0.7, 1.0, 1.4, 2.0)
  config.report.baseline = 'full'
  config.select.arms = _map_arms()
  if cell.texts == 'natural':
    natural_texts.set_corpus(config, scale.num_bytes, scale.longest[0])
    _set_splits(config)
    config.report.kinds = natural_texts.kinds()
    config.report.target = natural_texts.judged(config.report.kinds)
  else:
    _set_corpus(config, cell, scale)
    _set_kinds(config)
  if name == 'center':
    config.select.arms.update(_further_arms())
  elif name == 'natural':
    config.select.arms.update(_natural_arms())
  elif name == 'natural_smollm2':
    _set_smollm2_arms(config)
  else:  # Chosen before these cells ran: see the plan.
    config.report.hypothesis = ('top_nll', 'soft_compression', 'top_reducible')
  return config


def _set_kinds(config: ConfigDict) -> None:
  kinds = {
    'written': WRITTEN,
    'generated': GENERATED,
    'noise': NOISE,
    'copies': ('copies',),
  }
  config.report.kinds = {
    kind: sources
    for kind, sources in kinds.items()
    if sources[0] in config.corpus.sources
  }
  config.report.target = ('written',)


def amounts(
  cell: Cell, available: dict[str, int], total: int
) -> dict[str, int]:
  """How many bytes of each source, of `total` to score and to train on.

  Sources of a kind get equal amounts. What a source does not have, the others of
  its kind get.
  """
  rest = 1.0 - cell.copies - cell.noise
  kinds = {
    WRITTEN: rest * (1.0 - cell.generated),
    GENERATED: rest * cell.generated,
    NOISE: cell.noise,
    ('copies',): cell.copies,
  }
  result = {}
  for sources, fraction in kinds.items():
    left = round(fraction * total / cell.epochs)
    ascending = sorted(sources, key=lambda name: available[name])
    for number, name in enumerate(ascending):
      amount = min(available[name], left // (len(ascending) - number))
      result[name], left = amount, left - amount
    if left > 1000:
      raise UserError(
        f'The cell needs {left / 1e6:.2f} MB more of {", ".join(sources)}: make '
        'the corpus again by tools/make_experiment_corpus.py, with the versions '
        'in constraints.txt.'
      )
  return {name: amount for name, amount in result.items() if amount}


def _set_corpus(config: ConfigDict, cell: Cell, scale: Scale) -> None:
  sizes = CORPUS / 'sizes.json'
  if not sizes.is_file():
    raise UserError(
      f'There is no {sizes}: run python tools/make_experiment_corpus.py.'
    )
  heldout = scale.heldout_bytes
  longest = {name: scale.longest[name in GENERATED] for name in SOURCES}
  available = {
    name: size[str(longest[name])] - heldout
    for name, size in json.loads(sizes.read_text()).items()
  }
  used = amounts(cell, available, scale.num_bytes)
  for name, amount in used.items():
    config.corpus.sources[name] = base.jsonl(
      str(CORPUS / f'{name}.jsonl.zst'),
      id_column='id',
      max_document_bytes=longest[name],
      max_bytes=amount + heldout,
      max_heldout_bytes=heldout,
    )
  # A source has this fraction of held-out texts, or less by `max_heldout_bytes`.
  least = min(used[name] for name in WRITTEN)
  config.corpus.heldout_fraction = round(heldout / (least + heldout), 3)
  _set_splits(config)


def _set_splits(config: ConfigDict) -> None:
  config.corpus.reference_fraction = round(
    0.15 * (1.0 - config.corpus.heldout_fraction), 3
  )
  config.corpus.num_shards = 4


def _set_models(config: ConfigDict, cell: Cell, scale: Scale) -> None:
  config.vocabulary.size = scale.vocab_size
  config.vocabulary.type = 'bpe'
  config.vocabulary.train_bytes = 500_000
  shapes = (
    (config.model, scale.target),
    (config.reference.model, scale.references[cell.reference]),
  )
  for model, (depth, width, mlp_width) in shapes:
    model.num_layers, model.scan_unroll = depth, depth
    model.embed_dim, model.mlp_dim = width, mlp_width
    model.head_dim = scale.head_dim
    model.num_heads = model.num_kv_heads = max(1, width // scale.head_dim)
    model.dtype, model.remat = scale.dtype, 'none'
  tokens = scale.num_bytes / scale.bytes_per_token
  steps = round(0.85 * tokens / scale.batch_size / scale.sequence_length)
  for training, num_steps in (
    (config.train.training, steps),
    (config.reference.training, steps // 2),
  ):
    training.num_steps = num_steps
    training.batch_size = scale.batch_size
    training.sequence_length = scale.sequence_length
    training.optimizer = 'muon'
    training.learning_rate = scale.learning_rate
    training.schedule, training.warmup_steps = 'wsd', num_steps // 10
    training.log_every, training.eval_every = 50, math.ceil(num_steps / 10)
    training.checkpoint_every = 10 * num_steps
    training.metric_sinks = ()
  config.reference.extra_models.early = base.checkpoint(step=steps // 8)
  for scoring in (config.score, config.evaluate.scoring):
    scoring.per_device_batch_size = scale.batch_size
    scoring.sequence_length = scale.sequence_length
    scoring.window_overlap = scale.sequence_length // 8
    scoring.dtype = scale.dtype
  config.evaluate.online_eval_tokens = 20_000


def _map_arms() -> ConfigDict:
  return base.named(
    dict(
      full=base.arm('all'),
      random=base.arm('random', fraction=KEEP),
      longer=base.arm('all_plus_reference'),
      top_nll=base.arm('top', NLL, fraction=KEEP),
      soft_compression=_likelier(base.COMPRESSION),
      top_reducible=base.arm('top', REDUCIBLE, fraction=KEEP),
    )
  )


def _further_arms() -> ConfigDict:
  arms = base.named({})
  arms.random_per_source = base.arm('random', fraction=KEEP, per='source')
  # The oracle knows what a program wrote.
  arms.oracle = base.arm(
    'top',
    "CASE WHEN source LIKE 'generated%' THEN 0 ELSE 1 END",
    fraction=KEEP,
  )
  arms.soft_nll = _likelier(NLL)
  arms.deduplicated = base.arm('distinct')
  arms.near_deduplicated = base.arm('distinct', 'near_duplicate_group')
  arms.bottom_nll = base.arm('bottom', NLL, fraction=KEEP)
  arms.middle_nll = base.arm('middle', NLL, fraction=KEEP)
  paper = f'{base.INFORMATION} + {base.INVERSE_FREQUENCY}'
  arms.paper_sum = base.arm('top', paper, fraction=KEEP)
  arms.top_frequency = base.arm('top', base.INVERSE_FREQUENCY, fraction=KEEP)
  arms.top_compression = base.arm('top', base.COMPRESSION, fraction=KEEP)
  arms.top_length = base.arm('top', 'num_tokens', fraction=KEEP)
  arms.top_nll_per_source = base.arm('top', NLL, fraction=KEEP, per='source')
  arms.band_context = base.arm('band', CONTEXT_GAIN, low=0.45, high=0.95)
  arms.capped_reducible = (
    base.arm('distinct', 'near_duplicate_group', copies=2),
    base.arm('top', REDUCIBLE, fraction=KEEP),
  )
  arms.repeat_nll = base.arm(
    'repeat', NLL, curve=((0.0, 0), (0.3, 0), (0.6, 1), (0.95, 3))
  )
  arms.itself = base.branch(
    'full',
    at=0.3,
    then=base.arm('top', NLL, fraction=KEEP),
    score_with='itself',
  )
  arms.update(base.sweep('top_nll', 'top', NLL, fractions=(0.3, 0.7, 0.85)))
  return arms


def _natural_arms() -> ConfigDict:
  arms = base.named({})
  further = _further_arms()
  for name in (
    'random_per_source',
    'near_deduplicated',
    'paper_sum',
    'top_compression',
    'top_nll_per_source',
    'top_nll_85',
  ):
    arms[name] = further[name]
  arms.fitted_nll = base.arm('top', natural_texts.FITTED_NLL, fraction=KEEP)
  arms.fitted_reducible = base.arm(
    'top', natural_texts.FITTED_REDUCIBLE, fraction=KEEP
  )
  # 80 % of the tokens: without the easiest, and without the very hardest.
  arms.trimmed_nll = base.arm('band', NLL, low=0.15, high=0.95)
  arms.trimmed_compression = base.arm(
    'band', base.COMPRESSION, low=0.15, high=0.95
  )
  return arms


def _set_smollm2_arms(config: ConfigDict) -> None:
  scores = SMOLLM2 / 'scores/data'
  if not scores.is_dir():
    raise UserError(
      f'There are no scores in {scores}: run python -m infoprune_jax.main '
      f'--config=configs/experiment.py:smollm2 --workdir={SMOLLM2} --job=score.'
    )
  config.select.tables.smollm2 = base.table(
    f'{scores}/*.parquet', on=('source', 'example_id'), columns=('nll_sum',)
  )
  nll = 'smollm2.nll_sum / num_bytes'
  arms = config.select.arms
  arms.top_smollm2 = base.arm('top', nll, fraction=KEEP)
  arms.trimmed_smollm2 = base.arm('band', nll, low=0.15, high=0.95)


def _set_scoring(config: ConfigDict, scale: Scale) -> None:
  """SmolLM2-135M scores what the cells `natural*` score."""
  natural_texts.set_corpus(config, scale.num_bytes, scale.longest[0])
  _set_splits(config)
  config.corpus.num_shards = 32
  config.reference.checkpoint.path = natural_texts.smollm2()
  config.score.sequence_length, config.score.window_overlap = 1024, 256
  config.score.per_device_batch_size = 2


def _likelier(score: str) -> ConfigDict:
  """Draws few of the easiest, most of the rest, some of the very hardest."""
  rank = f'rank({score}, num_tokens)'
  weight = (
    f'case when {rank} < 0.5 then 0.1 when {rank} < 0.93 then 1.0 else 0.3 end'
  )
  return base.arm('sample', f'ln({weight})', fraction=KEEP)
