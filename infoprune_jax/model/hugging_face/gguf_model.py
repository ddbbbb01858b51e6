"""A model in a GGUF file, with the names of Hugging Face."""

import dataclasses
from typing import Any

import numpy as np

from infoprune_jax.config.validation import UserError
from infoprune_jax.tokens import gguf_file

# Names of tensors in the file, and in Hugging Face; `{}` is the layer's number.
NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
  'blk.{}.attn_norm': 'model.layers.{}.input_layernorm',
  'blk.{}.ffn_norm': 'model.layers.{}.post_attention_layernorm',
  'blk.{}.attn_q': 'model.layers.{}.self_attn.q_proj',
  'blk.{}.attn_k': 'model.layers.{}.self_attn.k_proj',
  'blk.{}.attn_v': 'model.layers.{}.self_attn.v_proj',
  'blk.{}.attn_output': 'model.layers.{}.self_attn.o_proj',
  'blk.{}.attn_q_norm': 'model.layers.{}.self_attn.q_norm',
  'blk.{}.attn_k_norm': 'model.layers.{}.self_attn.k_norm',
  'blk.{}.ffn_gate': 'model.layers.{}.mlp.gate_proj',
  'blk.{}.ffn_up': 'model.layers.{}.mlp.up_proj',
  'blk.{}.ffn_down': 'model.layers.{}.mlp.down_proj',
}
# Keys of the metadata, without the architecture, and keys of config.json.
KEYS = {
  'block_count': 'num_hidden_layers',
  'embedding_length': 'hidden_size',
  'feed_forward_length': 'intermediate_size',
  'attention.head_count': 'num_attention_heads',
  'attention.head_count_kv': 'num_key_value_heads',
  'attention.key_length': 'head_dim',
  'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
  'context_length': 'max_position_embeddings',
  'rope.freq_base': 'rope_theta',
  'attention.sliding_window': 'sliding_window',
}
# Metadata that repeat what tensors or other keys say.
IGNORED = ('vocab_size', 'rope.dimension_count', 'attention.value_length')
# In files of these, the two dimensions of a rotated pair are neighbours.
INTERLEAVED = ('llama',)
FAMILIES = ('llama', 'qwen2', 'qwen3')


@dataclasses.dataclass(frozen=True)
class GgufTensors:
  """The tensors of a file, by their names in Hugging Face."""

  file: gguf_file.GgufFile
  places: dict[str, str]  # their names in the file
  heads: dict[str, int]  # number of heads of interleaved queries and keys

  @property
  def names(self) -> list[str]:
    """All of them."""
    return list(self.places)

  def shape(self, name: str) -> tuple[int, ...]:
    """The shape of a tensor."""
    return self.file.shape(self.places[name])

  def read(self, name: str) -> np.ndarray:
    """A tensor as float32, dequantised."""
    values = self.file.read(self.places[name])
    kind = name.rpartition('.')[0].rpartition('.')[2]
    if kind in self.heads:
      pairs = values.reshape(self.heads[kind], -1, 2, *values.shape[1:])
      return pairs.swapaxes(1, 2).reshape(values.shape)
    return values


def open_model(path: str) -> tuple[dict[str, Any], GgufTensors]:
  """The metadata of a GGUF file as a config.json, and its tensors.

  Raises:
    UserError: it is no GGUF file, or its architecture, an option or a tensor is
      not supported.
  """
  file = gguf_file.open_file(path)
  family = file.get('general.architecture')
  if family not in FAMILIES:
    raise UserError(
      f'{path}: the architecture is {family!r}, expected one of '
      f'{", ".join(FAMILIES)}. Give the model as a folder of safetensors.'
    )
  values: dict[str, Any] = {'model_type': family, 'hidden_act': 'silu'}
  for key in file.reader.fields:
    option = key.removeprefix(f'{family}.')
    if option in KEYS:
      values[KEYS[option]] = file.get(key)
    elif key.startswith(f'{family}.') and option not in IGNORED:
      raise UserError(
        f'{path} sets {key}={file.get(key)!r}, which is not supported here. '
        'Give the model as a folder of safetensors.'
      )
  places = {}
  for name in file.tensors:
    number = name.split('.')[1] if name.startswith('blk.') else ''
    stem, _, kind = name.rpartition('.')
    theirs = NAMES.get(stem.replace(f'blk.{number}.', 'blk.{}.'))
    if theirs is None:
      raise UserError(f'{path} has a tensor {name}, which is not known here.')
    places[f'{theirs.format(number)}.{kind}'] = name
  values['vocab_size'] = file.shape('token_embd.weight')[0]
  values['tie_word_embeddings'] = 'lm_head.weight' not in places
  heads = {}
  if family in INTERLEAVED:
    heads['q_proj'] = values['num_attention_heads']
    heads['k_proj'] = values['num_key_value_heads']
  return values, GgufTensors(file, places, heads)
