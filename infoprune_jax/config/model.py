"""The shape of a model and how it is computed. Standard library only."""

import dataclasses

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
)

DTYPES = ('float32', 'bfloat16')
ATTENTION = ('auto', 'xla', 'cudnn', 'pallas', 'splash')
LOSS_KERNELS = ('auto', 'xla', 'hopper', 'tpu')
MLP_KERNELS = ('auto', 'xla', 'hopper')
# 'swiglu' and 'geglu' have three matrices: silu or gelu of the gate. 'gelu' and
# 'gelu_exact' have two. 'gelu' and 'geglu' approximate it by tanh.
ACTIVATIONS = ('swiglu', 'geglu', 'gelu', 'gelu_exact')
GATED = ('swiglu', 'geglu')
NORMS = ('rms', 'layer')
NORM_PLACEMENTS = ('pre', 'post', 'both')
QK_NORM_SCOPES = ('head', 'all')
ATTENTION_BIASES = ('none', 'qkv', 'all')
ROPE_SCALINGS = ('none', 'linear', 'llama3', 'longrope')
# The names of T5X and MaxText, from what keeps most to what keeps least.
REMAT = ('none', 'minimal', 'save_qkv_proj', 'full')
# Fields that say how it is computed, not what: a run may go on with others.
RUNTIME_ONLY_FIELDS = (
  'attention',
  'loss_kernel',
  'mlp_kernel',
  'remat',
  'scan_unroll',
  'loss_chunk_tokens',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerKind:
  """What a layer sees of the tokens before it, and how it knows positions.

  A pair of dimensions turns by position times frequency, and `rope_scaling`
  says how frequencies differ from those of `rope_theta`: divided by
  `rope_factor` ('linear'); so only where a turn is long, as Llama 3.1 does
  ('llama3'); or each divided by its own number in `rope_divisors` ('longrope').
  """

  window: int = 0  # tokens that a token sees, itself included; 0 for all
  rope_theta: float = 10_000.0  # base of the frequencies; 0.0 for no rotation
  rope_fraction: float = 1.0  # of the dimensions of a head that turn
  rope_scaling: str = 'none'
  rope_factor: float = 1.0
  # Of 'llama3': turns in `rope_original_length` tokens below which a frequency
  # is divided, and above which it is kept.
  rope_low_freq_factor: float = 1.0
  rope_high_freq_factor: float = 4.0
  # Tokens of the sequences before scaling: 'llama3' needs them, and 'longrope'
  # takes no longer ones.
  rope_original_length: int = 0
  rope_divisors: tuple[float, ...] = ()
  rope_magnitude: float = 1.0  # times cosines and sines

  def __post_init__(self):
    check_range('layer_pattern.window', self.window, 0, 2**31 - 1)
    check_range('layer_pattern.rope_theta', self.rope_theta, 0.0, 1e12)
    check_range('layer_pattern.rope_fraction', self.rope_fraction, 0.0, 1.0)
    check_choice('rope_scaling', self.rope_scaling, ROPE_SCALINGS)
    check_positive('layer_pattern', self, 'rope_factor', 'rope_magnitude')
    if self.rope_scaling in ('llama3', 'longrope'):
      check_positive('layer_pattern', self, 'rope_original_length')
    low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
    if not 0.0 < low < high < 1e6:
      raise UserError(
        'rope_low_freq_factor must be positive and less than '
        f'rope_high_freq_factor, got {low} and {high}.'
      )
    if not all(0.0 < divisor < 1e12 for divisor in self.rope_divisors):
      raise UserError(
        f'rope_divisors must be positive, got {self.rope_divisors}.'
      )

  def num_pairs(self, head_dim: int) -> int:
    """Pairs of dimensions of a head that turn."""
    return int(head_dim * self.rope_fraction) // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A decoder. Defaults: pre-norm, RMSNorm, rotary positions, no biases.

  `remat` says what of a layer the forward pass keeps for the backward pass,
  which computes the rest again: all of it ('none'); the results of products
  with weights ('minimal'); queries, keys and values ('save_qkv_proj'); nothing
  but the layer's input ('full'). `remat`, `scan_unroll` and `loss_chunk_tokens`
  can be left to the memory of the device: a run logs what it takes.
  """

  num_layers: int
  embed_dim: int
  mlp_dim: int
  activation: str = 'swiglu'  # one of ACTIVATIONS
  num_heads: int
  num_kv_heads: int  # divides num_heads
  head_dim: int  # even: rotary positions turn pairs
  rope_theta: float = 10_000.0  # base of the rotary frequencies
  # Layer l is of kind l modulo their number; () for one kind, of `rope_theta`.
  layer_pattern: tuple[LayerKind, ...] = ()
  max_positions: int = 0  # of learned positions, added to the embedding
  norm: str = 'rms'  # 'layer' subtracts the mean, and has a bias
  norm_epsilon: float = 1e-6
  # A branch's input is normed ('pre', GPT-2), or its output ('post', OLMo 2),
  # or both (Gemma 2). Sums of branches are normed at the end in any case.
  norm_placement: str = 'pre'
  # Both branches read the input of the layer (GPT-NeoX).
  parallel_residual: bool = False
  # RMSNorm of each query and key, before they are rotated. Training is then
  # stable at higher learning rates.
  qk_norm: bool = False
  qk_norm_scope: str = 'head'  # of each head (Qwen 3), or of 'all' (OLMo 2)
  attention_bias: str = 'none'  # 'qkv': of queries, keys and values (Qwen 2)
  mlp_bias: bool = False
  attention_scale: float = 0.0  # of query times key; 0.0 for head_dim ** -0.5
  attention_softcap: float = 0.0  # as `logit_softcap`, of attention's logits
  embed_scale: float = 1.0  # times the embedding of a token
  # The cap in cap * tanh(logits / cap), of the output logits; 0.0 for none.
  # Gemma 2 has 30.0. Only loss_kernel='xla' supports it.
  logit_softcap: float = 0.0
  tie_embeddings: bool = True  # the head is the embedding, transposed
  # Of the computation; parameters are float32. 'bfloat16' on TPUs and GPUs.
  dtype: str = 'float32'
  # Layers in each iteration of the scan over layers. 0 for all on a GPU, up to 8
  # on a CPU and 4 on a TPU, as far as memory allows.
  scan_unroll: int = 4
  # 'auto' is the first of REMAT that fits in memory.
  remat: str = 'none'
  # The most tokens whose logits are held at once; 0 for what memory allows.
  loss_chunk_tokens: int = 2048
  # 'auto' is the fastest kernel that runs on the device, in scoring and in
  # training. 'splash' needs a TPU. 'cudnn' needs an NVIDIA GPU of compute
  # capability 9.0 or later (not an A100, L4 or 4090), 'pallas' one of 8.0 or
  # later. 'xla' runs anywhere.
  attention: str = 'auto'
  # Of the loss, in scoring only. 'tpu' (v5e or later) and 'hopper' (H100, H200)
  # compute in bfloat16 and never write logits to memory. 'xla' runs anywhere.
  loss_kernel: str = 'auto'
  # Of the gated MLP, in scoring only: 'hopper' computes in bfloat16.
  mlp_kernel: str = 'auto'

  def __post_init__(self):
    check_choice('model.activation', self.activation, ACTIVATIONS)
    check_choice('model.dtype', self.dtype, DTYPES)
    check_choice('model.remat', self.remat, ('auto', *REMAT))
    check_choice('model.attention', self.attention, ATTENTION)
    check_choice('model.loss_kernel', self.loss_kernel, LOSS_KERNELS)
    check_choice('model.mlp_kernel', self.mlp_kernel, MLP_KERNELS)
    check_choice('model.norm', self.norm, NORMS)
    check_choice('model.norm_placement', self.norm_placement, NORM_PLACEMENTS)
    check_choice('model.qk_norm_scope', self.qk_norm_scope, QK_NORM_SCOPES)
    check_choice('model.attention_bias', self.attention_bias, ATTENTION_BIASES)
    check_range('model.max_positions', self.max_positions, 0, 2**31 - 1)
    for name in ('logit_softcap', 'attention_softcap', 'attention_scale'):
      check_range(f'model.{name}', getattr(self, name), 0.0, 1e6)
    few = ('num_layers', 'num_heads', 'num_kv_heads', 'head_dim')
    many = ('embed_dim', 'mlp_dim')
    positive = ('rope_theta', 'norm_epsilon', 'embed_scale')
    check_positive('model', self, *positive, *few, *many)
    # Larger than any, and the sizes of all arrays still fit 64 bits.
    for names, most in ((few, 2**14), (many, 2**20)):
      for name in names:
        check_range(f'model.{name}', getattr(self, name), 1, most)
    for name in ('scan_unroll', 'loss_chunk_tokens'):
      check_range(f'model.{name}', getattr(self, name), 0, 2**20)
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        'model.num_kv_heads must divide model.num_heads, got '
        f'{self.num_kv_heads} and {self.num_heads}.'
      )
    if self.head_dim % 2:
      raise UserError(f'model.head_dim must be even, got {self.head_dim}.')
    self._check_pattern()

  def _check_pattern(self) -> None:
    """Raises `UserError` if kinds of layers do not fit the model."""
    if len(self.layer_pattern) > self.num_layers:
      raise UserError(
        f'model.layer_pattern has {len(self.layer_pattern)} kinds of layers, '
        f'more than model.num_layers={self.num_layers}.'
      )
    if self.layer_pattern and self.rope_theta != 10_000.0:
      raise UserError(
        f'model.rope_theta is {self.rope_theta}, but model.layer_pattern gives '
        'each kind of layer its own: leave model.rope_theta out.'
      )
    for kind in self.layer_kinds:
      pairs = kind.num_pairs(self.head_dim)
      expected = pairs if kind.rope_scaling == 'longrope' else 0
      if len(kind.rope_divisors) != expected:
        raise UserError(
          f'model.layer_pattern: rope_divisors has {len(kind.rope_divisors)} '
          f'numbers, expected {expected}: one for each of {pairs} pairs with '
          "rope_scaling='longrope', none otherwise."
        )

  @property
  def is_gated(self) -> bool:
    """Whether the MLP multiplies by the activation of a gate."""
    return self.activation in GATED

  @property
  def layer_kinds(self) -> tuple[LayerKind, ...]:
    """The kinds of layers, one after another and again from the first."""
    return self.layer_pattern or (LayerKind(rope_theta=self.rope_theta),)
