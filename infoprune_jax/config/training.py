"""How a model is trained, and how long. Standard library only."""

import dataclasses
from collections.abc import Mapping

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
  check_seeds,
)

READERS = ('grain', 'seqio')
ON_BAD_STEP = ('stop', 'skip')
OPTIMIZERS = ('adamw', 'adafactor', 'muon')
METRIC_SINKS = ('tensorboard', 'wandb', 'stdout')
WEIGHTS = (1e-9, 1e9)  # of a mixture, apart from 0
SCHEDULES = ('cosine', 'linear', 'wsd', 'constant')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixturePhase:
  """Replaces `TrainingConfig.mixture` from a step on."""

  from_step: int
  weights: Mapping[str, float] = dataclasses.field(hash=False)  # as `mixture`


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
  """Budget, batch and optimizer of one training run.

  Set exactly one of `num_steps`, `num_tokens` and `num_flops`. A budget in
  tokens or FLOPs is rounded down to whole steps. After warm-up, the learning
  rate falls along a cosine or a line, or is constant. With 'wsd' (warm-up,
  stable, decay) it is constant, and falls along a line at the end.

  'muon' updates the matrices of layers, at the scale of AdamW's updates (arXiv
  2502.16982), and AdamW updates the rest: the embedding, the head and norms.
  With 'adafactor' (arXiv 1804.04235, without momentum) the learning rate is
  relative to the size of a parameter.
  """

  num_steps: int = 0
  num_tokens: int = 0  # padding included; e.g. 20 per parameter
  # By the formula of `model/flops.py`. Use it to compare models of any size.
  num_flops: float = 0.0
  batch_size: int  # sequences per step
  # The number of micro-batches of a step. Raise it if memory is short.
  gradient_accumulation_steps: int = 1
  sequence_length: int  # tokens
  # 'adamw'; 'muon', with half the state; 'adafactor', with almost none.
  optimizer: str = 'adamw'
  learning_rate: float  # peak; relative with 'adafactor': 1e-2 in T5X
  # 'cosine', 'linear', 'constant' or 'wsd'. With 'wsd' the steps before the
  # decay do not depend on num_steps, so that a longer run can start from them.
  schedule: str = 'cosine'
  warmup_steps: int = 0  # linear, from zero
  decay_fraction: float = 0.2  # of all steps: the last, in which 'wsd' falls
  final_learning_rate_ratio: float = 0.1  # of the peak, at the end
  # Of matrices, times the learning rate. Norms are not decayed.
  weight_decay: float = 0.1
  beta1: float = 0.9  # of AdamW
  beta2: float = 0.95  # of AdamW
  # The loss of a token is its NLL plus z_loss * log(Z)^2, with Z the softmax's
  # denominator. It keeps Z near 1. PaLM has 1e-4; 0.0 for none.
  z_loss: float = 0.0
  max_grad_norm: float = 1.0  # global norm; gradients above are scaled down
  log_every: int = 20  # steps
  # Where metrics go besides metrics.jsonl: 'tensorboard', 'stdout' or 'wandb'
  # (Weights & Biases, which needs pip install 'infoprune_jax[wandb]').
  metric_sinks: tuple[str, ...] = ('tensorboard',)
  eval_every: int = 100  # steps
  checkpoint_every: int = 250  # steps
  # Also save after this many minutes; 0.0 for never. Set 10.0 on preemptible
  # machines.
  checkpoint_minutes: float = 0.0
  max_checkpoints: int = 2  # the newest are kept
  keep_checkpoints_every: int = 0  # steps; these checkpoints stay; 0 for none
  # A step is bad if its loss or gradient is not finite, or if its loss is over
  # `max_loss_spike` times the running mean (0.0 for no limit). 'stop' ends the
  # run, 'skip' leaves the parameters as they were.
  on_bad_step: str = 'stop'
  max_loss_spike: float = 0.0
  # The process ends if no step ends for this long; 0.0 for no limit. The limit
  # must be longer than an evaluation of `online_eval_tokens`.
  watchdog_minutes: float = 30.0
  profile_from: int = 10  # the first step that jax.profiler traces
  profile_steps: int = 0  # how many it traces; 0 for none
  # The fraction of tokens by source, on any scale; {} for the natural sizes.
  mixture: Mapping[str, float] = dataclasses.field(
    default_factory=dict, hash=False
  )
  # Later mixtures; a weight may be 0.
  mixture_schedule: tuple[MixturePhase, ...] = ()
  # 'grain' reads the token store, 'seqio' reads the SeqIO task over it.
  reader: str = 'grain'

  def __post_init__(self):
    check_choice('training.reader', self.reader, READERS)
    check_choice('training.optimizer', self.optimizer, OPTIMIZERS)
    check_choice('training.on_bad_step', self.on_bad_step, ON_BAD_STEP)
    for name in self.metric_sinks:
      check_choice('training.metric_sinks', name, METRIC_SINKS)
    self._check_mixture()
    check_positive(
      'training',
      self,
      *('learning_rate', 'max_grad_norm', 'batch_size', 'sequence_length'),
      *('gradient_accumulation_steps', 'max_checkpoints'),
      *('log_every', 'eval_every', 'checkpoint_every'),
    )
    self._check_budget()
    self._check_schedule()
    if self.batch_size % self.gradient_accumulation_steps:
      raise UserError(
        'training.gradient_accumulation_steps must divide training.batch_size, '
        f'got {self.gradient_accumulation_steps} and {self.batch_size}.'
      )
    for name in (
      'checkpoint_minutes',
      'keep_checkpoints_every',
      'max_loss_spike',
      'watchdog_minutes',
      'profile_from',
      'profile_steps',
    ):
      check_range(f'training.{name}', getattr(self, name), 0, 1e9)
    if 0.0 < self.max_loss_spike <= 1.0:
      raise UserError(
        f'training.max_loss_spike is {self.max_loss_spike}, but losses vary '
        'around their mean: give a ratio above 1, such as 2.0, or 0.0.'
      )
    check_range('training.z_loss', self.z_loss, 0.0, 1e6)
    check_range('training.weight_decay', self.weight_decay, 0.0, 1e6)
    check_range('training.beta1', self.beta1, 0.0, 1.0)
    check_range('training.beta2', self.beta2, 0.0, 1.0)

  def _check_mixture(self) -> None:
    phases = {'training.mixture': self.mixture}
    last = 0
    if self.mixture_schedule and not self.mixture:
      raise UserError(
        'training.mixture_schedule changes training.mixture, which is empty: '
        'set it to the weights from step 0.'
      )
    for phase in self.mixture_schedule:
      if phase.from_step <= last:
        raise UserError(
          'training.mixture_schedule: each from_step must be above the one '
          f'before, and above 0, got {phase.from_step} after {last}.'
        )
      last = phase.from_step
      where = f'training.mixture_schedule from step {last}'
      if phase.weights.keys() != self.mixture.keys():
        raise UserError(
          f'{where} must weigh the sources of training.mixture, '
          f'{sorted(self.mixture)}, got {sorted(phase.weights)}.'
        )
      phases[where] = phase.weights
    for where, weights in phases.items():
      for source, weight in weights.items():
        if weight:
          check_range(f'{where}, {source!r}', weight, *WEIGHTS)
        if not any(other[source] for other in phases.values()):
          raise UserError(
            f'{where}, {source!r} is 0.0 in every phase: give it a positive '
            'weight in one, or leave the source out of the corpus.'
          )
      if weights and not any(weights.values()):
        raise UserError(f'{where} must give a source a weight above zero.')
    if self.mixture_schedule and self.reader == 'seqio':
      raise UserError(
        "training.reader='seqio' cannot change its mixture while it reads: use "
        "reader='grain', or leave training.mixture_schedule empty."
      )

  def _check_budget(self) -> None:
    budgets = {
      name: getattr(self, name)
      for name in ('num_steps', 'num_tokens', 'num_flops')
    }
    for name, value in budgets.items():
      check_range(f'training.{name}', value, 0, 2.0**100)
    if sum(value > 0 for value in budgets.values()) != 1:
      got = ', '.join(f'{name}={value:g}' for name, value in budgets.items())
      raise UserError(
        'training needs exactly one of num_steps, num_tokens and num_flops, '
        f'got {got}: set the others to 0.'
      )

  def _check_schedule(self) -> None:
    check_choice('training.schedule', self.schedule, SCHEDULES)
    check_range('training.decay_fraction', self.decay_fraction, 0.0, 1.0)
    check_range(
      'training.final_learning_rate_ratio',
      self.final_learning_rate_ratio,
      0.0,
      1.0,
    )
    # A budget in tokens or FLOPs is checked once it is known in steps.
    most = self.num_steps or 2**62
    check_range('training.warmup_steps', self.warmup_steps, 0, most)
    if self.schedule == 'wsd' and self.warmup_steps + self.decay_steps > most:
      raise UserError(
        f'training.warmup_steps={self.warmup_steps} and the {self.decay_steps} '
        f'steps of decay_fraction={self.decay_fraction:g} are more than num_steps='
        f'{self.num_steps}: lower one of them.'
      )

  @property
  def budget(self) -> str:
    """The budget as the user wrote it: `num_steps=500`."""
    if self.num_steps:
      return f'num_steps={self.num_steps}'
    if self.num_tokens:
      return f'num_tokens={self.num_tokens}'
    return f'num_flops={self.num_flops:g}'

  def whole_steps(self, flops_per_token: float) -> int:
    """The steps of the budget, rounded down; it may be less than one.

    Args:
      flops_per_token: Of training, by `flops.training_flops_per_token`.
    """
    if self.num_steps:
      return self.num_steps
    if self.num_tokens:
      return self.num_tokens // self.tokens_per_step
    return int(self.num_flops // (self.tokens_per_step * flops_per_token))

  def in_steps(self, flops_per_token: float, section: str) -> 'TrainingConfig':
    """The same training, with its budget as `num_steps`.

    Args:
      flops_per_token: As in `whole_steps`.
      section: This section of the config, for the message.

    Raises:
      UserError: the budget is less than a step, or than warm-up and decay.
    """
    if self.num_steps:
      return self
    steps = self.whole_steps(flops_per_token)
    if not steps:
      raise UserError(
        f'{section}.{self.budget} is less than one step, which has '
        f'{self.tokens_per_step:,} tokens and '
        f'{self.tokens_per_step * flops_per_token:.3g} FLOPs: raise it, or '
        'lower batch_size or sequence_length.'
      )
    try:
      return dataclasses.replace(
        self, num_steps=steps, num_tokens=0, num_flops=0.0
      )
    except UserError as error:
      raise UserError(
        f'{section}.{self.budget} comes to {steps} steps: {error}'
      ) from None

  @property
  def decay_steps(self) -> int:
    """The steps at the end in which 'wsd' falls; 0 if `num_steps` is unset."""
    return round(self.decay_fraction * self.num_steps)

  @property
  def tokens_per_step(self) -> int:
    """Slots of a batch, padding included."""
    return self.batch_size * self.sequence_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
  """The arms to train, each for each seed, at one budget."""

  arms: tuple[str, ...] = ()  # names in select.arms; () for all of them
  seeds: tuple[int, ...]
  training: TrainingConfig
  # Where every arm starts from, for continued pretraining: a path as in
  # `reference.checkpoint.path`; '' for random parameters. The arms then have the
  # shape of that model, not that of `model`, and seeds differ in order alone.
  init_from: str = ''
  # Multiples of the budget, such as (0.7, 1.0, 1.4), at which `report.baseline`
  # is trained and evaluated. The report then says how much longer the baseline
  # would train for the loss of an arm. Its runs share the steps before they
  # decay, so training.schedule must be 'wsd'. () for no such comparison.
  budgets: tuple[float, ...] = ()
  # Arms whose loss counts some tokens only: {'rho': 0.6} counts this fraction
  # of all scored tokens, those with the highest `score.token_excess`. The other
  # tokens still are context.
  token_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    check_seeds('train.seeds', *self.seeds)
    if not self.seeds or len(set(self.seeds)) != len(self.seeds):
      raise UserError(f'train.seeds must be distinct, got {self.seeds}.')
    if len(set(self.arms)) != len(self.arms):
      raise UserError(f'train.arms must be distinct, got {self.arms}.')
    self._check_budgets()

  def _check_budgets(self) -> None:
    if not self.budgets:
      return
    for budget in self.budgets:
      check_range('train.budgets', budget, 0.1, 10.0)
    names = {f'{budget:g}' for budget in self.budgets}  # those of runs
    is_ascending = list(self.budgets) == sorted(self.budgets)
    if not is_ascending or not {'1'} < names or len(names) < len(self.budgets):
      raise UserError(
        'train.budgets must be two or more multiples of the budget, in ascending '
        f'order, with 1.0 among them, such as (0.7, 1.0, 1.4), got {self.budgets}.'
      )
    training = self.training
    if training.schedule != 'wsd' or not training.decay_fraction:
      raise UserError(
        'train.budgets needs runs that share their steps before the learning '
        f'rate decays, but training.schedule is {training.schedule!r} and '
        f'decay_fraction {training.decay_fraction:g}: set '
        "train.training.schedule='wsd' and a fraction such as 0.2."
      )
