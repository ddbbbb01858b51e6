"""The keys of a config.json. A key that nothing reads is refused."""

from collections.abc import Mapping
from typing import Any

from infoprune_jax.config.validation import UserError

# Keys of training, of generation, of other tasks, and of the file's origin.
_IGNORED = """
  _attn_implementation _attn_implementation_autoset _name_or_path
  _sliding_window_pattern architectures attention_dropout attn_pdrop auto_map
  bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout
  dtype embd_pdrop eos_token_id gradient_checkpointing hidden_dropout id2label
  initializer_range is_decoder is_llama_config label2id max_position_embeddings
  max_window_layers model_type n_ctx name_or_path num_labels
  output_attentions output_hidden_states
  output_past pad_token_id pretraining_tp problem_type reorder_and_upcast_attn
  resid_pdrop return_dict sliding_window_pattern
  summary_activation summary_first_dropout summary_proj_to_labels summary_type
  summary_use_proj task_specific_params tokenizer_class torch_dtype
  transformers.js_config transformers_version unk_token_id use_cache
"""
IGNORED = frozenset(_IGNORED.split())
NO_DEFAULT = object()
UNSET = (None, False, [], {}, '')


class Keys:
  """The keys of a config.json, and the names of those that were read."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values, self.where = values, where
    self.read: set[str] = set()

  def get(self, *names: str, default: Any = NO_DEFAULT) -> Any:
    """The value of the first of several names that is set and not null.

    Raises:
      UserError: none of them is set, and there is no default.
    """
    self.read.update(names)
    for name in names:
      if self.values.get(name) is not None:
        return self.values[name]
    if default is NO_DEFAULT:
      raise UserError(
        f'{self.where} has no {names[0]}: the file may be damaged. Download it '
        'again.'
      )
    return default

  def refuse_others(self, ignored: frozenset[str] = IGNORED) -> None:
    """Raises `UserError` for keys that are set, but were not read."""
    unknown = {
      name: value
      for name, value in self.values.items()
      if name not in self.read | ignored and value not in UNSET
    }
    if unknown:
      given = ', '.join(f'{name}={value!r}' for name, value in unknown.items())
      raise UserError(
        f'{self.where} sets {given}, which is not supported. If it has no '
        'influence on the loss, remove it from the file.'
      )
