"""Windows and rotary positions of the layers of a Hugging Face model."""

import math
from collections.abc import Callable
from typing import Any

from infoprune_jax.config.model import LayerKind
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face.config_keys import Keys

SLIDING, FULL = 'sliding_attention', 'full_attention'
PARTIAL = ('gpt_neox', 'phi3')  # families that rotate part of a head


def pattern(kinds: list[LayerKind]) -> dict[str, Any]:
  """The fields of `ModelConfig` for the shortest pattern that repeats."""
  period = next(
    length
    for length in range(1, len(kinds) + 1)
    if all(kind == kinds[i % length] for i, kind in enumerate(kinds))
  )
  pattern = tuple(kinds[:period])
  if pattern == (LayerKind(rope_theta=kinds[0].rope_theta),):
    return {'rope_theta': kinds[0].rope_theta}
  return {'layer_pattern': pattern}


def layer_kind(
  keys: Keys, slides_at: Callable[[int], bool] | None, layer: int, head_dim: int
) -> LayerKind:
  """The window and the rotary positions of a layer.

  Args:
    keys: The keys of config.json.
    slides_at: Whether a layer has a window; None if no layer of the family has.
    layer: The number of the layer, from 0.
    head_dim: Dimensions of a head.

  Raises:
    UserError: a key has a value that is not supported.
  """
  window = 0
  if slides_at and slides_at(layer):
    window = keys.get('sliding_window', default=0)
  rope: dict[str, Any] = _rope(keys, SLIDING if window else FULL, head_dim)
  if not rotates(keys, layer):
    rope = {'rope_theta': 0.0}
  return LayerKind(window=window, **rope)


def is_listed(keys: Keys, layer: int, default: bool) -> bool:
  """Whether `layer_types` gives a layer a window; `default` without that key.

  Raises:
    UserError: the key has other types of layers, or too few.
  """
  types = keys.get('layer_types', default=None)
  keys.get('sliding_window', default=0)  # Read, even if no layer has a window.
  if types is None:
    return default
  if len(types) <= layer or types[layer] not in (SLIDING, FULL):
    raise UserError(
      f'{keys.where}: layer_types is {types}, expected {FULL!r} or {SLIDING!r} '
      'for each layer.'
    )
  return types[layer] == SLIDING


def rotates(keys: Keys, layer: int) -> bool:
  """Whether a layer has rotary positions. Some layers of SmolLM 3 have none."""
  if keys.values['model_type'] != 'smollm3':
    return True
  interval = keys.get('no_rope_layer_interval', default=4)
  listed = keys.get('no_rope_layers', default=None)
  return bool(listed[layer] if listed else (layer + 1) % interval)


def _rope(keys: Keys, layer_type: str, head_dim: int) -> dict[str, Any]:
  """The rotary fields of a `LayerKind`."""
  theta = keys.get('rope_theta', 'rotary_emb_base', default=10_000.0)
  fraction = keys.get('partial_rotary_factor', 'rotary_pct', default=1.0)
  local = keys.get('rope_local_base_freq', default=None)
  is_local = bool(local) and layer_type == SLIDING
  theta = local if is_local else theta
  given = keys.get('rope_parameters', default=None)
  scaling = keys.get('rope_scaling', default=None)
  if given is None:  # Before transformers 5.
    given = {} if is_local else scaling or {}
  if SLIDING in given or FULL in given:
    given = given.get(layer_type) or {}
  where = f'{keys.where}, rope_parameters'
  rope = Keys({'rope_theta': theta, **given}, where)
  fraction = float(rope.get('partial_rotary_factor', default=fraction))
  if fraction != 1.0 and keys.values['model_type'] not in PARTIAL:
    raise UserError(
      f'{where}: partial_rotary_factor is {fraction}, which only '
      f'{" and ".join(PARTIAL)} models have.'
    )
  fields = {
    'rope_theta': float(rope.get('rope_theta')),
    'rope_fraction': fraction,
    **_scaling(keys, rope, fraction, head_dim),
  }
  rope.refuse_others(frozenset())
  return fields


def _scaling(
  keys: Keys, rope: Keys, fraction: float, head_dim: int
) -> dict[str, Any]:
  """The fields of a `LayerKind` that scale its rotary positions.

  Args:
    keys: The keys of the model.
    rope: The rotary keys of the layer.
    fraction: The fraction of a head's dimensions that is rotated.
    head_dim: The dimensions of a head.
  """
  kind = rope.get('rope_type', 'type', default='default')
  length = 'original_max_position_embeddings'
  original = rope.get(length, default=None)
  original = keys.get(length, default=original)  # Phi-3's, which has both.
  if kind == 'linear':
    return {'rope_scaling': 'linear', 'rope_factor': rope.get('factor')}
  if kind == 'llama3':
    return _llama3(rope, original)
  if kind in ('longrope', 'su'):
    pairs = LayerKind(rope_fraction=fraction).num_pairs(head_dim)
    longest = keys.get('max_position_embeddings')
    return _longrope(rope, pairs, original or longest, longest)
  if kind != 'default':
    raise UserError(
      f'{rope.where}: rope_type is {kind!r}, expected default, linear, llama3 or '
      'longrope.'
    )
  return {}


def _llama3(rope: Keys, original: int | None) -> dict[str, Any]:
  if original is None:
    raise UserError(f'{rope.where} has no original_max_position_embeddings.')
  return {
    'rope_scaling': 'llama3',
    'rope_factor': rope.get('factor'),
    'rope_low_freq_factor': rope.get('low_freq_factor'),
    'rope_high_freq_factor': rope.get('high_freq_factor'),
    'rope_original_length': original,
  }


def _longrope(
  rope: Keys, pairs: int, original: int, longest: int
) -> dict[str, Any]:
  """The fields for sequences up to the original length, as in Phi-3."""
  rope.get('long_factor', default=None)  # Read, but only for longer sequences.
  factor = max(rope.get('factor', default=longest / original), 1.0)
  magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
  divisors = tuple(float(number) for number in rope.get('short_factor'))
  if len(divisors) != pairs:
    raise UserError(
      f'{rope.where}: short_factor has {len(divisors)} numbers, expected '
      f'{pairs}.'
    )
  return {
    'rope_scaling': 'longrope',
    'rope_divisors': divisors,
    'rope_original_length': original,
    'rope_magnitude': rope.get('attention_factor', default=magnitude),
  }
