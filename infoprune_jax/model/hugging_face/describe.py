"""Writes a `ModelConfig` as the config.json of a family that computes the same.

The keys are those of transformers 5. The family is the first one whose
config.json reads back as the same model.
"""

import dataclasses
from typing import Any

from infoprune_jax.config.model import (
  RUNTIME_ONLY_FIELDS,
  LayerKind,
  ModelConfig,
)
from infoprune_jax.config.validation import UserError, default_of
from infoprune_jax.model.hugging_face import configs
from infoprune_jax.model.hugging_face.layer_kinds import FULL, SLIDING

# By family, the class of transformers, and its keys besides `_SHAPE`.
_WINDOWS = ('sliding_window', 'use_sliding_window', 'layer_types')
_SHAPE = (
  'hidden_size',
  'intermediate_size',
  'num_hidden_layers',
  'num_attention_heads',
  'num_key_value_heads',
  'hidden_act',
  'rms_norm_eps',
  'rope_parameters',
)
_GEMMA = (
  'head_dim',
  'hidden_activation',
  'attention_bias',
  'attn_logit_softcapping',
  'final_logit_softcapping',
  'query_pre_attn_scalar',
  'sliding_window',
  'layer_types',
)
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
  'llama': ('LlamaForCausalLM', ('head_dim', 'attention_bias', 'mlp_bias')),
  'qwen2': ('Qwen2ForCausalLM', (*_WINDOWS, 'max_window_layers')),
  'qwen3': (
    'Qwen3ForCausalLM',
    ('head_dim', 'attention_bias', *_WINDOWS, 'max_window_layers'),
  ),
  'mistral': ('MistralForCausalLM', ('head_dim', 'sliding_window')),
  'olmo2': ('Olmo2ForCausalLM', ('attention_bias',)),
  'smollm3': (
    'SmolLM3ForCausalLM',
    ('attention_bias', 'mlp_bias', 'no_rope_layers', *_WINDOWS),
  ),
  'phi3': (
    'Phi3ForCausalLM',
    ('sliding_window', 'original_max_position_embeddings'),
  ),
  'gemma2': ('Gemma2ForCausalLM', _GEMMA),
  'gemma3_text': ('Gemma3ForCausalLM', _GEMMA),
  'gpt2': ('GPT2LMHeadModel', ()),
  'gpt_neox': (
    'GPTNeoXForCausalLM',
    ('layer_norm_eps', 'attention_bias', 'use_parallel_residual'),
  ),
}
_GPT2_NAMES = {
  'hidden_size': 'n_embd',
  'intermediate_size': 'n_inner',
  'num_hidden_layers': 'n_layer',
  'num_attention_heads': 'n_head',
  'hidden_act': 'activation_function',
  'rms_norm_eps': 'layer_norm_epsilon',
}
_ACTIVATIONS = {
  'swiglu': 'silu',
  'geglu': 'gelu_pytorch_tanh',
  'gelu': 'gelu_new',
  'gelu_exact': 'gelu',
}


def config_json(
  model: ModelConfig, vocab_size: int, max_length: int
) -> dict[str, Any]:
  """The config.json of a model.

  Args:
    model: The model.
    vocab_size: The number of token ids of its embedding.
    max_length: `max_position_embeddings`, the most tokens of a sequence, for a
      model without a limit of its own.

  Raises:
    UserError: no family computes the same as the model.
  """
  model = _without_runtime(model)
  keys = _all_keys(model, vocab_size, max_length)
  for family, (architecture, names) in FAMILIES.items():
    values = {name: keys[name] for name in (*_SHAPE, *names)}
    values |= {name: keys[name] for name in _SHARED}
    if family == 'gpt2':
      values = {_GPT2_NAMES.get(k, k): v for k, v in values.items()}
      values['n_positions'] = model.max_positions
      del values['num_key_value_heads'], values['rope_parameters']
    if family == 'gpt_neox':
      del values['num_key_value_heads'], values['rms_norm_eps']
    if family.startswith('gemma'):
      del values['hidden_act']
    if family != 'gemma3_text':
      rope = values.get('rope_parameters')
      values |= {'rope_parameters': rope[FULL]} if rope else {}
    values = {
      'architectures': [architecture],
      'model_type': family,
      **{name: value for name, value in values.items() if value is not None},
    }
    if _reads_as(values, model, vocab_size):
      return values
  raise UserError(
    'No family of Hugging Face computes the same as this model: none of '
    f'{", ".join(FAMILIES)} has all of its options, {_unusual(model)}.'
  )


_SHARED = (
  'vocab_size',
  'tie_word_embeddings',
  'max_position_embeddings',
  'dtype',
)


def _all_keys(
  model: ModelConfig, vocab_size: int, max_length: int
) -> dict[str, Any]:
  """The values of the keys of all families for this model."""
  kinds = model.layer_kinds
  layers = [kinds[i % len(kinds)] for i in range(model.num_layers)]
  windows = {kind.window for kind in layers} - {0}
  full = next((kind for kind in layers if not kind.window), layers[0])
  # Layers without rotary positions do not decide `rope_parameters`.
  full = next((k for k in layers if k.rope_theta and not k.window), full)
  local = next((kind for kind in layers if kind.window), full)
  return {
    'vocab_size': vocab_size,
    'tie_word_embeddings': model.tie_embeddings,
    'max_position_embeddings': model.max_positions or max_length,
    'dtype': 'float32',
    'hidden_size': model.embed_dim,
    'intermediate_size': model.mlp_dim,
    'num_hidden_layers': model.num_layers,
    'num_attention_heads': model.num_heads,
    'num_key_value_heads': model.num_kv_heads,
    'head_dim': model.head_dim,
    'hidden_act': _ACTIVATIONS[model.activation],
    'hidden_activation': _ACTIVATIONS[model.activation],
    'rms_norm_eps': model.norm_epsilon,
    'layer_norm_eps': model.norm_epsilon,
    'attention_bias': model.attention_bias != 'none',
    'mlp_bias': model.mlp_bias,
    'use_parallel_residual': model.parallel_residual,
    'attn_logit_softcapping': model.attention_softcap or None,
    'final_logit_softcapping': model.logit_softcap or None,
    'query_pre_attn_scalar': _query_scalar(model),
    'sliding_window': max(windows, default=None),
    'use_sliding_window': bool(windows),
    'max_window_layers': 0,
    'layer_types': [SLIDING if kind.window else FULL for kind in layers],
    'no_rope_layers': [int(kind.rope_theta > 0) for kind in layers],
    'original_max_position_embeddings': full.rope_original_length or None,
    'rope_parameters': {FULL: _rope(full), SLIDING: _rope(local)},
  }


def _query_scalar(model: ModelConfig) -> float:
  """`query_pre_attn_scalar`: Gemma scales queries by its inverse square root."""
  scalar = (model.attention_scale or model.head_dim**-0.5) ** -2
  return round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar


def _rope(kind: LayerKind) -> dict[str, Any]:
  """`rope_parameters` of a kind of layers."""
  values: dict[str, Any] = {
    'rope_type': 'default',
    'rope_theta': kind.rope_theta,
  }
  if kind.rope_fraction != 1.0:
    values['partial_rotary_factor'] = kind.rope_fraction
  if kind.rope_scaling == 'linear':
    values |= {'rope_type': 'linear', 'factor': kind.rope_factor}
  if kind.rope_scaling == 'llama3':
    values |= {
      'rope_type': 'llama3',
      'factor': kind.rope_factor,
      'low_freq_factor': kind.rope_low_freq_factor,
      'high_freq_factor': kind.rope_high_freq_factor,
      'original_max_position_embeddings': kind.rope_original_length,
    }
  if kind.rope_scaling == 'longrope':
    values |= {
      'rope_type': 'longrope',
      'short_factor': list(kind.rope_divisors),
      # For longer sequences, which this program refuses.
      'long_factor': list(kind.rope_divisors),
      'attention_factor': kind.rope_magnitude,
      'original_max_position_embeddings': kind.rope_original_length,
    }
  return values


def _reads_as(
  values: dict[str, Any], model: ModelConfig, vocab_size: int
) -> bool:
  """Whether a config.json gives a model back."""
  try:
    result, size = configs.model_config(values, 'config.json')
  except UserError:
    return False  # The family lacks an option.
  return (_without_runtime(result), size) == (model, vocab_size)


def _without_runtime(model: ModelConfig) -> ModelConfig:
  """The model with defaults for the options of its computation.

  A scale of attention that is left at its default is written out.
  """
  names = (*RUNTIME_ONLY_FIELDS, 'dtype')
  fields = {field.name: field for field in dataclasses.fields(model)}
  defaults: dict[str, Any] = {name: default_of(fields[name]) for name in names}
  return dataclasses.replace(
    model,
    **defaults,
    attention_scale=model.attention_scale or model.head_dim**-0.5,
  )


def _unusual(model: ModelConfig) -> str:
  """The options of a model that differ from their defaults."""
  differ = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(model)
    if default_of(field) is not dataclasses.MISSING
    and getattr(model, field.name) != default_of(field)
  }
  return ', '.join(f'{name}={value!r}' for name, value in differ.items())
