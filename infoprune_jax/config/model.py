"""The shape of a model and how it is computed. Standard library only."""

import dataclasses

from infoprune_jax.config.validation import (
  UserError,
  check_choice,
  check_positive,
  check_range,
)

DTYPES = ('float32', 'bfloat16')
ATTENTION = ('auto', 'xla', 'cudnn', 'splash')
KERNELS = ('auto', 'xla', 'hopper', 'tpu')
ACTIVATIONS = ('swiglu', 'gelu')
# The names of T5X and MaxText, from what keeps most to what keeps least.
REMAT = ('none', 'minimal', 'save_qkv_proj', 'full')
# Fields that say how it is computed, not what: a run may go on with others.
RUNTIME_ONLY_FIELDS = (
  'attention',
  'loss_kernel',
  'remat',
  'scan_unroll',
  'loss_chunk_tokens',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A pre-norm decoder: RMSNorm, rotary positions, grouped queries.

  `remat` says what of a layer the forward pass keeps for the backward pass,
  which computes the rest again: all of it ('none'); the results of products
  with weights ('minimal'); queries, keys and values ('save_qkv_proj'); nothing
  but the layer's input ('full').
  """

  num_layers: int
  embed_dim: int
  mlp_dim: int
  activation: str = 'swiglu'  # 'swiglu', of three matrices, or 'gelu', of two
  num_heads: int
  num_kv_heads: int  # divides num_heads
  head_dim: int  # even: rotary positions turn pairs
  rope_theta: float = 10_000.0  # base of the rotary frequencies
  norm_epsilon: float = 1e-6
  # RMSNorm of each query and key, before they are rotated. Training is then
  # stable at higher learning rates.
  qk_norm: bool = False
  # The cap in cap * tanh(logits / cap), of the output logits; 0.0 for none.
  # Gemma 2 has 30.0. Only loss_kernel='xla' supports it.
  logit_softcap: float = 0.0
  tie_embeddings: bool = True  # the head is the embedding, transposed
  # Of the computation; parameters are float32. 'bfloat16' on TPUs and GPUs.
  dtype: str = 'float32'
  scan_unroll: int = 4  # layers in each iteration of the scan over layers
  # Use 'none' if it fits in memory. Otherwise use 'minimal', then 'full'.
  remat: str = 'none'
  loss_chunk_tokens: int = 2048  # tokens whose logits are held at once
  # 'auto' is the fastest kernel that runs on the device. Training uses XLA's
  # kernels, and cuDNN's attention only if it is named. 'splash' needs a TPU.
  # 'cudnn' needs an NVIDIA GPU of compute capability 9.0 or later (not an A100,
  # L4 or 4090). 'xla' runs anywhere.
  attention: str = 'auto'
  # Of the loss and the gated MLP, in scoring only. 'tpu' (v5e or later) and
  # 'hopper' (H100, H200) compute in bfloat16 and never write logits to memory.
  # 'xla' runs anywhere.
  loss_kernel: str = 'auto'

  def __post_init__(self):
    check_choice('model.activation', self.activation, ACTIVATIONS)
    check_choice('model.dtype', self.dtype, DTYPES)
    check_choice('model.remat', self.remat, REMAT)
    check_choice('model.attention', self.attention, ATTENTION)
    check_choice('model.loss_kernel', self.loss_kernel, KERNELS)
    check_range('model.logit_softcap', self.logit_softcap, 0.0, 1e6)
    few = ('num_layers', 'num_heads', 'num_kv_heads', 'head_dim')
    many = ('embed_dim', 'mlp_dim', 'scan_unroll', 'loss_chunk_tokens')
    check_positive('model', self, 'rope_theta', 'norm_epsilon', *few, *many)
    # Larger than any, and the sizes of all arrays still fit 64 bits.
    for names, most in ((few, 2**14), (many, 2**20)):
      for name in names:
        check_range(f'model.{name}', getattr(self, name), 1, most)
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        'model.num_kv_heads must divide model.num_heads, got '
        f'{self.num_kv_heads} and {self.num_heads}.'
      )
    if self.head_dim % 2:
      raise UserError(f'model.head_dim must be even, got {self.head_dim}.')
