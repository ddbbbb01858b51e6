"""What a config.json means, by old and new keys, and what is refused."""

import pathlib

import pytest
from hugging_face_models import SHAPE

from infoprune_jax.config.model import LayerKind
from infoprune_jax.config.validation import UserError
from infoprune_jax.model.hugging_face import configs

LLAMA = {'model_type': 'llama', 'hidden_act': 'silu', **SHAPE}
NEOX = {**LLAMA, 'model_type': 'gpt_neox', 'hidden_act': 'gelu'}
GEMMA2 = {'model_type': 'gemma2', **SHAPE, 'head_dim': 16}
GEMMA3 = {**GEMMA2, 'model_type': 'gemma3_text', 'num_hidden_layers': 6}
LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
PHI3 = {
  **LLAMA,
  'model_type': 'phi3',
  'max_position_embeddings': 512,
  'original_max_position_embeddings': 128,
  'sliding_window': None,
}
LONG = {'short_factor': [1.5] * 16, 'long_factor': [4.0] * 16}


def read(values, **edits):
  merged = {**values, **edits}
  kept = {name: value for name, value in merged.items() if value is not ...}
  return configs.model_config(kept, 'config.json')[0]


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    (
      {**LLAMA, 'rope_theta': 5e5},
      {**LLAMA, 'rope_parameters': {'rope_theta': 5e5}},
    ),
    (
      {
        **LLAMA,
        'rope_theta': 5e5,
        'rope_scaling': {'rope_type': 'llama3', **LLAMA3},
        'torch_dtype': 'bfloat16',
      },
      {
        **LLAMA,
        'rope_parameters': {
          'rope_type': 'llama3',
          'rope_theta': 5e5,
          **LLAMA3,
        },
        'dtype': 'bfloat16',
      },
    ),
    (
      {**LLAMA, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      {
        **LLAMA,
        'rope_parameters': {
          'rope_type': 'linear',
          'factor': 2.0,
          'rope_theta': 1e4,
        },
      },
    ),
    (
      {**NEOX, 'rotary_pct': 0.5, 'rotary_emb_base': 300},
      {
        **NEOX,
        'rope_parameters': {'rope_theta': 300, 'partial_rotary_factor': 0.5},
      },
    ),
    (
      {
        **GEMMA3,
        'rope_theta': 1e5,
        'rope_local_base_freq': 200.0,
        'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
        'sliding_window_pattern': 3,
      },
      {
        **GEMMA3,
        'rope_parameters': {
          'full_attention': {
            'rope_type': 'linear',
            'factor': 8.0,
            'rope_theta': 1e5,
          },
          'sliding_attention': {'rope_type': 'default', 'rope_theta': 200.0},
        },
        'layer_types': ['sliding_attention'] * 2
        + ['full_attention']
        + ['sliding_attention'] * 2
        + ['full_attention'],
      },
    ),
    (
      {**PHI3, 'rope_scaling': {'type': 'su', **LONG}},
      {**PHI3, 'rope_parameters': {'rope_type': 'longrope', **LONG}},
    ),
  ],
)
def test_old_and_new_keys_mean_the_same(old, new):
  assert read(old) == read(new)
  assert read(old) != read({**old, 'rms_norm_eps': 1e-3})


def test_missing_keys_mean_what_the_classes_say():
  assert read(LLAMA, num_key_value_heads=...).num_kv_heads == 4
  assert read(LLAMA, num_key_value_heads=None).num_kv_heads == 4
  assert not read(LLAMA, tie_word_embeddings=...).tie_embeddings
  assert read(GEMMA2, tie_word_embeddings=...).tie_embeddings
  assert read({**LLAMA, 'model_type': 'qwen3'}).head_dim == 128
  assert read({**LLAMA, 'model_type': 'mistral'}).layer_kinds[0].window == 4096
  assert read({**LLAMA, 'model_type': 'phi3'}).norm_epsilon == 1e-5
  assert read(NEOX).layer_kinds[0].rope_fraction == 0.25


def test_null_is_no_cap_and_no_window():
  assert read(GEMMA2).attention_softcap == 50.0
  assert read(GEMMA2, attn_logit_softcapping=None).attention_softcap == 0.0
  assert read(GEMMA2, final_logit_softcapping=None).logit_softcap == 0.0
  mistral = {**LLAMA, 'model_type': 'mistral', 'sliding_window': None}
  assert read(mistral).layer_kinds[0].window == 0


@pytest.mark.parametrize(
  ('edits', 'windows'),
  [
    ({'model_type': 'qwen2'}, [0, 0]),
    ({'model_type': 'qwen2', 'use_sliding_window': True}, [0, 9]),
    (
      {
        'model_type': 'qwen3',
        'use_sliding_window': True,
        'layer_types': ['sliding_attention', 'full_attention'],
      },
      [9, 0],
    ),
    ({'model_type': 'mistral'}, [9, 9]),
    ({'model_type': 'phi3'}, [9, 9]),
    ({'model_type': 'gemma2', 'head_dim': 16}, [9, 0]),
    ({'model_type': 'gemma3_text', 'head_dim': 16}, [9, 9]),
    (
      {
        'model_type': 'smollm3',
        'use_sliding_window': True,
        'no_rope_layer_interval': 2,
      },
      [0, 9],
    ),
  ],
)
def test_layers_have_the_windows_of_their_family(edits, windows):
  model = read({**LLAMA, 'sliding_window': 9, 'max_window_layers': 1}, **edits)
  kinds = model.layer_kinds
  assert [kinds[i % len(kinds)].window for i in range(2)] == windows


def test_layers_without_positions_are_those_that_smollm_3_lists():
  smollm3 = {**LLAMA, 'model_type': 'smollm3', 'num_hidden_layers': 4}
  rotating = LayerKind(rope_theta=2e6)
  still = LayerKind(rope_theta=0.0)
  assert read(smollm3).layer_kinds == (*[rotating] * 3, still)
  listed = read(smollm3, no_rope_layers=[0, 1, 0, 1])
  assert listed.layer_kinds == (still, rotating)


def test_longrope_scales_by_the_ratio_of_lengths_or_a_factor_that_is_given():
  rope = {'rope_type': 'longrope', **LONG}
  given = read(PHI3, rope_parameters=rope).layer_kinds[0]
  assert given.rope_original_length == 128
  assert given.rope_magnitude == pytest.approx(1.1339, abs=1e-4)
  other = read(PHI3, rope_parameters={**rope, 'factor': 1.0}).layer_kinds[0]
  assert other.rope_magnitude == 1.0


def test_the_text_part_of_a_model_with_images_is_read():
  text = {'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 6}
  values = {'model_type': 'gemma3', 'text_config': text, 'vision_config': {}}
  found = configs.text_config(values, 'config.json')
  model, vocab_size = configs.model_config(found, 'config.json')
  assert vocab_size == 262_208
  assert (model.num_heads, model.head_dim) == (8, 256)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({**LLAMA, 'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, 'dynamic'),
    ({**LLAMA, 'rope_parameters': {'rope_type': 'yarn'}}, 'yarn'),
    ({**LLAMA, 'rope_scaling': {'type': 'linear', 'odd': 1}}, 'factor'),
    (
      {**LLAMA, 'rope_scaling': {'type': 'linear', 'factor': 2.0, 'odd': 1}},
      'odd=1',
    ),
    ({**LLAMA, 'hidden_act': 'relu'}, "'relu', expected one of silu"),
    ({**LLAMA, 'hidden_act': None}, 'no hidden_act'),
    ({**LLAMA, 'sliding_window': 9}, 'sliding_window=9'),
    ({**LLAMA, 'layer_types': ['full_attention'] * 2}, 'layer_types'),
    ({**LLAMA, 'logit_scale': 0.5}, 'logit_scale=0.5'),
    ({**LLAMA, 'num_local_experts': 8}, 'num_local_experts=8'),
    ({**LLAMA, 'rope_interleaved': True}, 'rope_interleaved=True'),
    ({**LLAMA, 'quantization_config': {'bits': 4}}, 'quantised'),
    ({**LLAMA, 'hidden_size': 'wide'}, 'wrong type'),
    ({**LLAMA, 'num_attention_heads': 0}, 'wrong type'),
    ({**LLAMA, 'num_hidden_layers': None}, 'no num_hidden_layers'),
    ({**GEMMA2, 'use_bidirectional_attention': True}, 'bidirectional'),
    ({**GEMMA2, 'layer_types': ['full_attention']}, 'for each layer'),
    ({**GEMMA2, 'layer_types': ['chunked_attention'] * 2}, 'chunked_attention'),
    ({**PHI3, 'rope_scaling': {'type': 'longrope', **LONG, 'mscale': 2}}, 'ms'),
    (
      {
        **PHI3,
        'rope_scaling': {'type': 'longrope', 'short_factor': [1.0]},
      },
      '1 numbers, expected 16',
    ),
    (
      {
        'model_type': 'gpt2',
        'n_embd': 8,
        'n_head': 2,
        'n_layer': 1,
        'n_positions': 16,
        'vocab_size': 9,
        'activation_function': 'gelu_new',
        'scale_attn_by_inverse_layer_idx': True,
      },
      'scale_attn_by_inverse_layer_idx=True',
    ),
  ],
)
def test_what_is_not_supported_is_refused_by_name(values, words):
  with pytest.raises(UserError) as error:
    configs.model_config(values, 'there/config.json')
  assert words in str(error.value)
  assert 'there/config.json' in str(error.value)


@pytest.mark.parametrize('kind', ['mixtral', None])
def test_another_architecture_is_told_which_there_are(kind):
  with pytest.raises(UserError) as error:
    configs.text_config({'model_type': kind}, 'config.json')
  assert repr(kind) in str(error.value)
  assert all(family in str(error.value) for family in configs.FAMILIES)


def test_the_docs_list_the_families():
  page = pathlib.Path('docs/models.md').read_text()
  lines = page.split('\n## Families\n')[1].split('\n## ')[0].splitlines()
  listed = {line.split('`')[1] for line in lines if line.startswith('| `')}
  assert listed - {'model_type'} == set(configs.FAMILIES)
