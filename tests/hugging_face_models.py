"""Small random models of every family, with every option that matters."""

SHAPE = dict(
  vocab_size=70,
  hidden_size=128,  # Logits of noise 0.1 then have a deviation of 1.1.
  intermediate_size=48,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=256,
  tie_word_embeddings=False,
)
LLAMA3 = dict(
  rope_type='llama3',
  rope_theta=100.0,
  factor=4.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=64,
)
FULL, SLIDING = 'full_attention', 'sliding_attention'
# Name, class of transformers' config, and what differs from SHAPE.
MODELS = {
  'llama': ('LlamaConfig', {}),
  'llama-tied': ('LlamaConfig', {'tie_word_embeddings': True}),
  'llama-biases': (
    'LlamaConfig',
    {'attention_bias': True, 'mlp_bias': True, 'head_dim': 6},
  ),
  'llama-3': ('LlamaConfig', {'rope_parameters': LLAMA3}),
  'llama-linear': (
    'LlamaConfig',
    {'rope_parameters': dict(rope_type='linear', factor=2.0, rope_theta=50.0)},
  ),
  'mistral': ('MistralConfig', {'sliding_window': 7, 'head_dim': 12}),
  'mistral-full': ('MistralConfig', {'sliding_window': None}),
  'qwen2': ('Qwen2Config', {}),
  'qwen2-windows': (
    'Qwen2Config',
    {
      'num_hidden_layers': 3,
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 1,
    },
  ),
  'qwen3': ('Qwen3Config', {'head_dim': 16, 'attention_bias': True}),
  'smollm3': (
    'SmolLM3Config',
    {'num_hidden_layers': 5, 'pad_token_id': 0, 'no_rope_layer_interval': 4},
  ),
  'olmo2': ('Olmo2Config', {'attention_bias': True}),
  'phi3': ('Phi3Config', {'pad_token_id': 0, 'sliding_window': 9}),
  'phi3-longrope': (
    'Phi3Config',
    {
      'pad_token_id': 0,
      'max_position_embeddings': 512,
      'original_max_position_embeddings': 128,
      'rope_parameters': dict(
        rope_type='longrope',
        rope_theta=100.0,
        partial_rotary_factor=0.5,
        short_factor=[1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0],
        long_factor=[9.0] * 8,
        original_max_position_embeddings=128,
      ),
    },
  ),
  'gemma2': (
    'Gemma2Config',
    {
      'head_dim': 12,
      'query_pre_attn_scalar': 20,
      'sliding_window': 6,
      'attn_logit_softcapping': 3.0,
      'final_logit_softcapping': 8.0,
      'num_hidden_layers': 3,
      'tie_word_embeddings': True,
      'attention_bias': True,
    },
  ),
  'gemma3': (
    'Gemma3TextConfig',
    {
      'head_dim': 12,
      'query_pre_attn_scalar': 20,
      'sliding_window': 6,
      'num_hidden_layers': 8,
      'tie_word_embeddings': True,
      'rope_parameters': {
        FULL: dict(rope_type='linear', factor=4.0, rope_theta=300.0),
        SLIDING: dict(rope_type='default', rope_theta=20.0),
      },
    },
  ),
  'gpt2': (
    'GPT2Config',
    {'n_inner': 40, 'activation_function': 'gelu_new', 'n_positions': 128},
  ),
  'gpt2-untied': (
    'GPT2Config',
    {'tie_word_embeddings': False, 'activation_function': 'gelu'},
  ),
  'neox': (
    'GPTNeoXConfig',
    {'rope_parameters': dict(partial_rotary_factor=0.25, rope_theta=100.0)},
  ),
  'neox-serial': (
    'GPTNeoXConfig',
    {'use_parallel_residual': False, 'attention_bias': False},
  ),
}
GPT2_NAMES = {
  'hidden_size': 'n_embd',
  'num_hidden_layers': 'n_layer',
  'num_attention_heads': 'n_head',
  'max_position_embeddings': 'n_positions',
}


def options(name: str) -> tuple[str, dict]:
  """The class of the config, and its arguments."""
  kind, edits = MODELS[name]
  given = {**SHAPE, **edits}
  if kind == 'GPT2Config':
    given = {GPT2_NAMES.get(k, k): v for k, v in {**SHAPE, **edits}.items()}
    given = {
      **given,
      **edits,
      'tie_word_embeddings': edits.get('tie_word_embeddings', True),
    }
    for key in ('num_key_value_heads', 'intermediate_size'):
      del given[key]
  if kind == 'GPTNeoXConfig':
    del given['num_key_value_heads']
  ids = dict(bos_token_id=1, eos_token_id=2)
  return kind, {**given, **ids}
