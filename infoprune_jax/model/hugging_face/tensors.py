"""The tensors of Hugging Face models, and the parameters that each one holds."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from infoprune_jax.config.model import ModelConfig

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
  """How a tensor of Hugging Face is split into parameters, and joined again."""

  split: Callable[[np.ndarray, ModelConfig], Arrays]
  join: Callable[[Arrays, ModelConfig], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of Hugging Face; `{}` in its name is the number of the layer."""

  name: str
  params: tuple[str, ...]  # dotted paths of the parameters in it
  form: Form

  @property
  def is_stacked(self) -> bool:
    """Whether each layer has such a tensor."""
    return '{}' in self.name

  def shape(
    self, params: Sequence[tuple[int, ...]], config: ModelConfig
  ) -> tuple[int, ...]:
    """The shape of the tensor, from the shapes of its parameters in one layer."""
    # These arrays take no memory, whatever their shape.
    empty = [np.broadcast_to(np.int8(0), shape) for shape in params]
    return self.form.join(empty, config).shape


SAME = Form(lambda a, c: [a], lambda p, c: p[0])
# The matrix of nn.Linear is [output, input].
LINEAR = Form(lambda a, c: [a.T], lambda p, c: p[0].T)
# Gemma's norms multiply by 1 + w.
ONE_LESS = Form(lambda a, c: [a + 1], lambda p, c: p[0] - 1)
HEADS_IN = Form(
  lambda a, c: [a.T.reshape(c.embed_dim, -1, c.head_dim)],
  lambda p, c: p[0].reshape(c.embed_dim, -1).T,
)
HEADS_OUT = Form(
  lambda a, c: [a.T.reshape(-1, c.head_dim, c.embed_dim)],
  lambda p, c: p[0].reshape(-1, c.embed_dim).T,
)
HEADS = Form(  # of a bias, or of the scale of all heads
  lambda a, c: [a.reshape(-1, c.head_dim)],
  lambda p, c: p[0].reshape(-1),
)


def _split_neox(a: np.ndarray, config: ModelConfig) -> Arrays:
  """Query, key and value of each head in turn, [heads x 3 x head_dim, ...]."""
  parts = a.reshape(config.num_heads, 3, config.head_dim, *a.shape[1:])
  parts = parts.swapaxes(0, 1)
  if a.ndim == 1:
    return list(parts)
  return [part.transpose(2, 0, 1) for part in parts]


def _join_neox(params: Arrays, config: ModelConfig) -> np.ndarray:
  if params[0].ndim == 3:
    params = [param.transpose(1, 2, 0) for param in params]
  stacked = np.stack(params, axis=1)
  return stacked.reshape(-1, *stacked.shape[3:])


def _split_gpt2(a: np.ndarray, config: ModelConfig) -> Arrays:
  """Queries, keys and values beside each other, [..., 3 x embed_dim]."""
  heads = (config.num_heads, config.head_dim)
  return [x.reshape(*a.shape[:-1], *heads) for x in np.split(a, 3, axis=-1)]


def _join_gpt2(params: Arrays, config: ModelConfig) -> np.ndarray:
  width = config.num_heads * config.head_dim
  flat = [param.reshape(*param.shape[:-2], width) for param in params]
  return np.concatenate(flat, axis=-1)


def _split_phi3(a: np.ndarray, config: ModelConfig) -> Arrays:
  """Queries, keys and values below each other, [heads x head_dim, embed_dim]."""
  heads = config.num_heads, config.num_heads + config.num_kv_heads
  parts = np.split(a, [n * config.head_dim for n in heads])
  return [HEADS_IN.split(part, config)[0] for part in parts]


def _join_phi3(params: Arrays, config: ModelConfig) -> np.ndarray:
  return np.concatenate([HEADS_IN.join([param], config) for param in params])


NEOX_QKV = Form(_split_neox, _join_neox)
GPT2_QKV = Form(_split_gpt2, _join_gpt2)
PHI3_QKV = Form(_split_phi3, _join_phi3)
PHI3_GATE_UP = Form(
  lambda a, c: [half.T for half in np.split(a, 2)],
  lambda p, c: np.concatenate([half.T for half in p]),
)
GPT2_OUT = Form(
  lambda a, c: [a.reshape(c.num_heads, c.head_dim, c.embed_dim)],
  lambda p, c: p[0].reshape(-1, c.embed_dim),
)
QKV = tuple(f'layers.attention.{name}' for name in ('query', 'key', 'value'))
QKV_BIAS = tuple(f'{name}_bias' for name in QKV)
GATE_UP = ('layers.mlp.gate', 'layers.mlp.up')


def _linear(name: str, param: str, form: Form, bias: Form) -> list[Tensor]:
  return [
    Tensor(f'{name}.weight', (param,), form),
    Tensor(f'{name}.bias', (f'{param}_bias',), bias),
  ]


def _norm(name: str, param: str, form: Form = SAME) -> list[Tensor]:
  return [
    Tensor(f'{name}.weight', (f'{param}.scale',), form),
    Tensor(f'{name}.bias', (f'{param}.bias',), SAME),
  ]


def _llama(
  norms: dict[str, str], norm: Form = SAME, qk_norm: Form = SAME
) -> list[Tensor]:
  """Names that most families share; their norms differ."""
  layer = 'model.layers.{}'
  attention, mlp = f'{layer}.self_attn', f'{layer}.mlp'
  tensors = [Tensor('model.embed_tokens.weight', ('embedding',), SAME)]
  for name in ('q', 'k', 'v'):
    param = {'q': 'query', 'k': 'key', 'v': 'value'}[name]
    tensors += _linear(
      f'{attention}.{name}_proj', f'layers.attention.{param}', HEADS_IN, HEADS
    )
  tensors += _linear(
    f'{attention}.o_proj', 'layers.attention.out', HEADS_OUT, SAME
  )
  for name, param in (('q', 'query'), ('k', 'key')):
    tensors += _norm(
      f'{attention}.{name}_norm', f'layers.attention.{param}_norm', qk_norm
    )
  for name in ('gate', 'up', 'down'):
    tensors += _linear(f'{mlp}.{name}_proj', f'layers.mlp.{name}', LINEAR, SAME)
  for name, param in norms.items():
    tensors += _norm(f'{layer}.{name}', f'layers.{param}', norm)
  return [
    *tensors,
    *_norm('model.norm', 'final_norm', norm),
    Tensor('lm_head.weight', ('head',), LINEAR),
  ]


PRE = {
  'input_layernorm': 'attention_norm',
  'post_attention_layernorm': 'mlp_norm',
}
POST = {
  'post_attention_layernorm': 'attention_post_norm',
  'post_feedforward_layernorm': 'mlp_post_norm',
}
BOTH = {
  **POST,
  'input_layernorm': 'attention_norm',
  'pre_feedforward_layernorm': 'mlp_norm',
}


def _phi3() -> list[Tensor]:
  layer = 'model.layers.{}'
  own = {*QKV, *GATE_UP}
  return [
    *(t for t in _llama(PRE) if not own.intersection(t.params)),
    Tensor(f'{layer}.self_attn.qkv_proj.weight', QKV, PHI3_QKV),
    Tensor(f'{layer}.mlp.gate_up_proj.weight', GATE_UP, PHI3_GATE_UP),
  ]


def _gpt2() -> list[Tensor]:
  layer = 'transformer.h.{}'
  return [
    Tensor('transformer.wte.weight', ('embedding',), SAME),
    Tensor('transformer.wpe.weight', ('position_embedding',), SAME),
    *_norm(f'{layer}.ln_1', 'layers.attention_norm'),
    Tensor(f'{layer}.attn.c_attn.weight', QKV, GPT2_QKV),
    Tensor(f'{layer}.attn.c_attn.bias', QKV_BIAS, GPT2_QKV),
    *_linear(f'{layer}.attn.c_proj', 'layers.attention.out', GPT2_OUT, SAME),
    *_norm(f'{layer}.ln_2', 'layers.mlp_norm'),
    *_linear(f'{layer}.mlp.c_fc', 'layers.mlp.up', SAME, SAME),
    *_linear(f'{layer}.mlp.c_proj', 'layers.mlp.down', SAME, SAME),
    *_norm('transformer.ln_f', 'final_norm'),
    Tensor('lm_head.weight', ('head',), LINEAR),
  ]


def _neox() -> list[Tensor]:
  layer = 'gpt_neox.layers.{}'
  attention, mlp = f'{layer}.attention', f'{layer}.mlp'
  return [
    Tensor('gpt_neox.embed_in.weight', ('embedding',), SAME),
    *_norm(f'{layer}.input_layernorm', 'layers.attention_norm'),
    *_norm(f'{layer}.post_attention_layernorm', 'layers.mlp_norm'),
    Tensor(f'{attention}.query_key_value.weight', QKV, NEOX_QKV),
    Tensor(f'{attention}.query_key_value.bias', QKV_BIAS, NEOX_QKV),
    *_linear(f'{attention}.dense', 'layers.attention.out', HEADS_OUT, SAME),
    *_linear(f'{mlp}.dense_h_to_4h', 'layers.mlp.up', LINEAR, SAME),
    *_linear(f'{mlp}.dense_4h_to_h', 'layers.mlp.down', LINEAR, SAME),
    *_norm('gpt_neox.final_layer_norm', 'final_norm'),
    Tensor('embed_out.weight', ('head',), LINEAR),
  ]


TENSORS: dict[str, Callable[[], list[Tensor]]] = {
  **dict.fromkeys(
    ('llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'),
    functools.partial(_llama, PRE),
  ),
  'olmo2': functools.partial(_llama, POST, qk_norm=HEADS),
  'phi3': _phi3,
  'gemma2': functools.partial(_llama, BOTH, ONE_LESS),
  'gemma3_text': functools.partial(_llama, BOTH, ONE_LESS, ONE_LESS),
  'gpt2': _gpt2,
  'gpt_neox': _neox,
}
# Other prefixes of the names of these tensors.
ALIASES = {
  'gpt2': (('', 'transformer.'),),
  'gpt_neox': (('lm_head.', 'embed_out.'),),
  'gemma3_text': (
    ('language_model.', ''),
    ('model.language_model.', 'model.'),
  ),
}
# Tensors that a forward pass computes itself, and tensors of images.
BUFFERS = ('.attn.bias', '.masked_bias', '.rotary_emb.inv_freq')
OTHER_PARTS = ('vision_tower.', 'multi_modal_projector.')
