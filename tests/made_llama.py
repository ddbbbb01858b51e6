"""A small random Llama of transformers, and its tokenizer."""

import pathlib
from typing import Any

import tokenizers

LAYERS, WIDTH, HIDDEN, HEADS, KV_HEADS, DIM = 2, 32, 64, 4, 2, 8


def tokenizer(folder: pathlib.Path, texts: list[str], size: int = 400) -> Any:
  """A byte-level BPE whose encoder adds BOS, saved in a folder."""
  import transformers

  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  made.train_from_iterator(
    texts,
    tokenizers.trainers.BpeTrainer(
      vocab_size=size,
      special_tokens=['<s>', '</s>'],
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=made,
    bos_token='<s>',
    eos_token='</s>',
    pad_token='</s>',
  )
  fast.save_pretrained(folder)
  return fast


def network_of(
  vocab_size: int, max_length: int, seed: int = 0, noise: float = 0.1
) -> Any:
  """Random weights, large enough that positions and norms matter."""
  import torch
  import transformers

  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=vocab_size,
      hidden_size=WIDTH,
      intermediate_size=HIDDEN,
      num_hidden_layers=LAYERS,
      num_attention_heads=HEADS,
      num_key_value_heads=KV_HEADS,
      head_dim=DIM,
      max_position_embeddings=max_length,
      rms_norm_eps=1e-6,
      tie_word_embeddings=False,
      bos_token_id=0,
      eos_token_id=1,
      pad_token_id=1,
    )
  ).eval()
  with torch.no_grad():
    for weights in model.parameters():
      weights += noise * torch.randn_like(weights)
  return model
