r"""Times lm-evaluation-harness on multiple choice: our model beside its own.

  python benchmarks/lm_eval_speed.py --items=hellaswag.jsonl [--num_items=200]

Items are JSONL with `query` and `choices`. The model is a random Llama of 17M
parameters in float32, of which both load one folder. Their batch size is
'auto', which they measure first, and 32 beside it. Compiling is part of our
time, as the search for a batch size is of theirs. Needs torch, transformers and
accelerate.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from infoprune_jax.evaluate.harness import InfopruneLM

VOCAB_SIZE, MAX_LENGTH = 8192, 1024
SHAPE = dict(
  hidden_size=384,
  intermediate_size=1024,
  num_hidden_layers=6,
  num_attention_heads=6,
  num_key_value_heads=6,
)


def requests(path: str, num_items: int) -> list[Instance]:
  """Each choice of the first items, after its query."""
  with open(path, encoding='utf-8') as file:
    items = [json.loads(line) for _, line in zip(range(num_items), file)]  # noqa: B905
  pairs = [
    (item['query'], f' {choice}')
    for item in items
    for choice in item['choices']
  ]
  return [
    Instance(request_type='loglikelihood', doc={}, arguments=pair, idx=number)
    for number, pair in enumerate(pairs)
  ]


def save_model(folder: str, texts: list[str]) -> int:
  """Writes a model and its tokenizer; returns how many parameters it has."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  byte_level = tokenizers.pre_tokenizers.ByteLevel
  made.pre_tokenizer = byte_level(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=byte_level.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(texts, trainer)
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', 0)]
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=made, bos_token='<s>', eos_token='</s>', pad_token='</s>'
  ).save_pretrained(folder)
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=MAX_LENGTH,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=1,
    **SHAPE,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  model.save_pretrained(folder)
  return model.num_parameters()


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
  """What a function returns, and its seconds."""
  start = time.perf_counter()
  result = function()
  return result, time.perf_counter() - start


def theirs(folder: str, batch_size: str | int) -> HFLM:
  """The harness's own model."""
  return HFLM(
    pretrained=folder,
    dtype='float32',
    device='cpu',
    batch_size=batch_size,
    max_length=MAX_LENGTH,
  )


def run(items: str, num_items: int) -> None:
  """Prints seconds and their ratios."""
  asked = requests(items, num_items)
  texts = [text for request in asked for text in request.args]
  with tempfile.TemporaryDirectory() as folder:
    size = save_model(folder, texts)
    ours = InfopruneLM(folder, max_length=MAX_LENGTH)
    results = {'ours': timed(lambda: ours.loglikelihood(asked))}
    results['ours again'] = timed(lambda: ours.loglikelihood(asked))
    for batch_size in ('auto', 32):
      model = theirs(folder, batch_size)
      results[f'theirs, batch {batch_size}'] = timed(
        lambda model=model: model.loglikelihood(asked, disable_tqdm=True)
      )
  print(f'{len(asked)} requests, {size:,} parameters')
  answers, seconds = results['ours']
  for name, (other, taken) in results.items():
    difference = np.abs(np.array(other)[:, 0] / np.array(answers)[:, 0] - 1)
    print(
      f'{name}: {taken:.1f} s, {taken / seconds:.2f} times ours, log-probabilities '
      f'differ by at most {difference.max():.1e}'
    )


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--items', required=True, help='JSONL, see above')
  parser.add_argument('--num_items', type=int, default=200)
  arguments = parser.parse_args()
  run(arguments.items, arguments.num_items)
