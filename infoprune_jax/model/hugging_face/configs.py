"""Reads a Hugging Face config.json as a `ModelConfig`.

Each family names its keys and their defaults, as the classes of transformers 5
do. Old names of keys are read, too. A key that is set and not read is refused,
unless it has no influence on a forward pass.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from infoprune_jax.config.model import LayerKind, ModelConfig
from infoprune_jax.config.validation import UserError, build, to_plain
from infoprune_jax.model.hugging_face import layer_kinds
from infoprune_jax.model.hugging_face.config_keys import Keys

# Activations of an MLP with a gate, and of one without.
GATED = {
  'silu': 'swiglu',
  'swish': 'swiglu',
  'gelu_pytorch_tanh': 'geglu',
  'gelu_new': 'geglu',
}
UNGATED = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_fast': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
}


@dataclasses.dataclass(frozen=True)
class Family:
  """How the keys of a model_type are read."""

  fixed: dict[str, Any]  # fields of ModelConfig that all models have
  # Values of keys that config.json may leave out.
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
  # Reads fields of ModelConfig from keys that not every family has.
  own: Callable[[Keys], dict[str, Any]] = lambda keys: {}
  # Whether a layer has the window of `sliding_window`; None if none ever has.
  sliding: Callable[[Keys, int], bool] | None = None
  activations: dict[str, str] = dataclasses.field(default_factory=lambda: GATED)


def _attention_bias(keys: Keys) -> dict[str, Any]:
  biased = keys.get('attention_bias', default=False)
  return {'attention_bias': 'all' if biased else 'none'}


def _llama(keys: Keys) -> dict[str, Any]:
  mlp_bias = keys.get('mlp_bias', default=False)
  return {**_attention_bias(keys), 'mlp_bias': mlp_bias}


def _gemma(keys: Keys) -> dict[str, Any]:
  if keys.get('use_bidirectional_attention', default=False):
    raise UserError(
      f'{keys.where} sets use_bidirectional_attention: only causal models are '
      'supported.'
    )
  return {
    **_attention_bias(keys),
    'attention_scale': keys.get('query_pre_attn_scalar') ** -0.5,
    'attention_softcap': keys.get('attn_logit_softcapping', default=0.0),
    'logit_softcap': keys.get('final_logit_softcapping', default=0.0),
    'embed_scale': keys.get('hidden_size') ** 0.5,
  }


def _gpt2(keys: Keys) -> dict[str, Any]:
  if not keys.get('scale_attn_weights', default=True):
    raise UserError(
      f'{keys.where} sets scale_attn_weights=False, which is not supported.'
    )
  return {
    'max_positions': keys.get('n_positions', 'max_position_embeddings'),
    'num_kv_heads': keys.get('n_head', 'num_attention_heads'),
  }


def _neox(keys: Keys) -> dict[str, Any]:
  return {
    'parallel_residual': keys.get('use_parallel_residual', default=True),
    'attention_bias': (
      'all' if keys.get('attention_bias', default=True) else 'none'
    ),
    'num_kv_heads': keys.get('num_attention_heads'),
  }


def _qwen_slides(keys: Keys, layer: int) -> bool:
  first = keys.get('max_window_layers', default=28)
  slides = layer_kinds.is_listed(keys, layer, layer >= first)
  return keys.get('use_sliding_window', default=False) and slides


def _smollm3_slides(keys: Keys, layer: int) -> bool:
  default = not layer_kinds.rotates(keys, layer)
  slides = layer_kinds.is_listed(keys, layer, default)
  return keys.get('use_sliding_window', default=False) and slides


def _gemma2_slides(keys: Keys, layer: int) -> bool:
  return layer_kinds.is_listed(keys, layer, layer % 2 == 0)


def _gemma3_slides(keys: Keys, layer: int) -> bool:
  names = ('sliding_window_pattern', '_sliding_window_pattern')
  slides = (layer + 1) % keys.get(*names, default=6) != 0
  return layer_kinds.is_listed(keys, layer, slides)


def _every_layer(keys: Keys, layer: int) -> bool:
  return True


_GEMMA = {'norm_placement': 'both'}
_GEMMA_DEFAULTS = {
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-6,
  'hidden_activation': 'gelu_pytorch_tanh',
  'tie_word_embeddings': True,
  'vocab_size': 262_208,
  'sliding_window': 4096,
}
_GPT2_OPTIONS = {
  'norm': 'layer',
  'attention_bias': 'all',
  'mlp_bias': True,
  'layer_pattern': (LayerKind(rope_theta=0.0),),
}
FAMILIES: dict[str, Family] = {
  'llama': Family({}, own=_llama),
  'mistral': Family({}, {'sliding_window': 4096}, sliding=_every_layer),
  'qwen2': Family({'attention_bias': 'qkv'}, sliding=_qwen_slides),
  'qwen3': Family(
    {'qk_norm': True}, {'head_dim': 128}, _attention_bias, _qwen_slides
  ),
  'smollm3': Family(
    {},
    {'tie_word_embeddings': True, 'rope_theta': 2_000_000.0},
    _llama,
    _smollm3_slides,
  ),
  'olmo2': Family(
    {'norm_placement': 'post', 'qk_norm': True, 'qk_norm_scope': 'all'},
    {'rms_norm_eps': 1e-5},
    _attention_bias,
  ),
  'phi3': Family(
    {},
    {'rms_norm_eps': 1e-5, 'original_max_position_embeddings': 4096},
    sliding=_every_layer,
  ),
  'gemma2': Family(
    _GEMMA,
    {
      **_GEMMA_DEFAULTS,
      'vocab_size': 256_000,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
    },
    _gemma,
    _gemma2_slides,
  ),
  'gemma3_text': Family(
    {**_GEMMA, 'qk_norm': True},
    {
      **_GEMMA_DEFAULTS,
      'rope_theta': 1_000_000.0,
      'rope_local_base_freq': 10_000.0,
    },
    _gemma,
    _gemma3_slides,
  ),
  'gpt2': Family(
    _GPT2_OPTIONS,
    {'tie_word_embeddings': True, 'layer_norm_epsilon': 1e-5},
    _gpt2,
    activations=UNGATED,
  ),
  'gpt_neox': Family(
    {'norm': 'layer', 'mlp_bias': True},
    {'rotary_pct': 0.25, 'layer_norm_eps': 1e-5},
    _neox,
    activations=UNGATED,
  ),
}


def text_config(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
  """The part of a config.json that describes the language model.

  Raises:
    UserError: the family is not supported; the message lists those that are.
  """
  if values.get('model_type') == 'gemma3' and 'text_config' in values:
    values = {'model_type': 'gemma3_text', **values['text_config']}
  if values.get('model_type') not in FAMILIES:
    raise UserError(
      f'{where}: model_type is {values.get("model_type")!r}, expected one of '
      f'{", ".join(FAMILIES)}.'
    )
  return values


def model_config(
  values: Mapping[str, Any], where: str
) -> tuple[ModelConfig, int]:
  """The model that a config.json describes, and the size of its vocabulary.

  Args:
    values: As `text_config` gives them.
    where: The file, for messages.

  Raises:
    UserError: a key is missing, or has a value that is not supported.
  """
  keys = Keys({**FAMILIES[values['model_type']].defaults, **values}, where)
  try:
    fields = _fields(keys)
    vocab_size = keys.get('vocab_size')
    keys.refuse_others()
    return build(ModelConfig, to_plain(fields), where), vocab_size
  except UserError:
    raise
  except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
    raise UserError(
      f'{where} has a value of a wrong type ({error}): the file may be damaged. '
      'Download it again.'
    ) from error


def _fields(keys: Keys) -> dict[str, Any]:
  """The fields of `ModelConfig`."""
  family = FAMILIES[keys.values['model_type']]
  quantized = keys.get('quantization_config', default=None)
  if quantized:
    raise UserError(
      f'{keys.where}: the weights are quantised ({quantized!r}): give the model in '
      'float32, float16 or bfloat16, or a GGUF file.'
    )
  width = keys.get('hidden_size', 'n_embd')
  heads = keys.get('num_attention_heads', 'n_head')
  fields = {
    'num_layers': keys.get('num_hidden_layers', 'n_layer'),
    'embed_dim': width,
    'mlp_dim': keys.get('intermediate_size', 'n_inner', default=4 * width),
    'num_heads': heads,
    'num_kv_heads': keys.get('num_key_value_heads', default=heads),
    'head_dim': keys.get('head_dim', default=width // heads),
    'activation': _activation(keys, family),
    'norm_epsilon': keys.get(
      'rms_norm_eps', 'layer_norm_eps', 'layer_norm_epsilon', default=1e-6
    ),
    'tie_embeddings': keys.get('tie_word_embeddings', default=False),
    **family.fixed,
    **family.own(keys),
  }
  if 'layer_pattern' not in fields:
    slides = family.sliding and functools.partial(family.sliding, keys)
    kinds = [
      layer_kinds.layer_kind(keys, slides, layer, fields['head_dim'])
      for layer in range(fields['num_layers'])
    ]
    fields.update(layer_kinds.pattern(kinds))
  return fields


def _activation(keys: Keys, family: Family) -> str:
  name = keys.get('hidden_activation', 'hidden_act', 'activation_function')
  if name not in family.activations:
    raise UserError(
      f'{keys.where}: the activation is {name!r}, expected one of '
      f'{", ".join(family.activations)}.'
    )
  return family.activations[name]
