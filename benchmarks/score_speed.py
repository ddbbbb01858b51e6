r"""Times the NLL of whole documents: our scorer beside transformers.

  python benchmarks/score_speed.py --model=MODEL --documents=corpus.jsonl \
      [--num_tokens=20000]

MODEL is a folder of Hugging Face or a GGUF file. Documents are JSONL with
`text`; those of up to 1,024 tokens are taken in corpus order, until there are
as many tokens as asked for. transformers runs in three ways: one document at a
time; sorted by length, in batches of at most 4,096 padded tokens; and in
batches of 8 in corpus order. All compute in float32 on the devices that there
are. Our first call compiles; the second one is compared. Needs torch and
transformers.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers

import infoprune_jax

MAX_LENGTH, PADDED, BATCH = 1024, 4096, 8


def documents(path: str, model: Any, num_tokens: int) -> list[str]:
  """Texts of up to MAX_LENGTH tokens, as many as are asked for."""
  texts, total = [], 0
  for line in pathlib.Path(path).read_text(encoding='utf-8').splitlines():
    text = json.loads(line)['text']
    size = len(model.vocabulary.encode(text))
    if 0 < size < MAX_LENGTH:
      texts.append(text)
      total += size
    if total >= num_tokens:
      break
  return texts


def load_theirs(path: str) -> Any:
  """The same model in transformers."""
  where = pathlib.Path(path)
  options: dict[str, Any] = {'dtype': torch.float32}
  if where.suffix == '.gguf':
    where, options['gguf_file'] = where.parent, where.name
  return transformers.AutoModelForCausalLM.from_pretrained(
    where, **options
  ).eval()


@torch.no_grad()
def nll_of(model: Any, batch: list[np.ndarray]) -> list[float]:
  """The sum of each sequence, of its tokens after the first."""
  longest = max(map(len, batch))
  ids = torch.zeros(len(batch), longest, dtype=torch.long)
  mask = torch.zeros(len(batch), longest, dtype=torch.long)
  for row, tokens in enumerate(batch):
    ids[row, : len(tokens)] = torch.tensor(tokens)
    mask[row, : len(tokens)] = 1
  logits = model(ids, attention_mask=mask).logits[:, :-1]
  nll = torch.nn.functional.cross_entropy(
    logits.transpose(1, 2), ids[:, 1:], reduction='none'
  )
  return (nll.double() * mask[:, 1:]).sum(1).tolist()


def one_at_a_time(lengths: np.ndarray) -> Iterator[np.ndarray]:
  """Each sequence alone."""
  yield from np.arange(len(lengths))[:, None]


def sorted_by_length(lengths: np.ndarray) -> Iterator[np.ndarray]:
  """Batches of at most PADDED tokens, with as little padding as can be."""
  order, first = np.argsort(lengths), 0
  for last in range(1, len(order) + 1):
    if last == len(order) or lengths[order[last]] * (last + 1 - first) > PADDED:
      yield order[first:last]
      first = last


def in_corpus_order(lengths: np.ndarray) -> Iterator[np.ndarray]:
  """Batches of BATCH sequences."""
  for first in range(0, len(lengths), BATCH):
    yield np.arange(first, min(first + BATCH, len(lengths)))


def main() -> None:
  """Prints the rate of each, and how far sums of documents lie apart."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--model', required=True)
  parser.add_argument('--documents', required=True)
  parser.add_argument('--num_tokens', type=int, default=20_000)
  flags = parser.parse_args()
  ours = infoprune_jax.load_model(flags.model, max_length=MAX_LENGTH)
  texts = documents(flags.documents, ours, flags.num_tokens)
  start = time.perf_counter()
  ours.score(texts)
  compiled = time.perf_counter() - start
  start = time.perf_counter()
  losses = ours.score(texts)
  own = time.perf_counter() - start
  total = int(losses.num_tokens.sum())
  print(
    f'{len(texts)} documents, {total} tokens; ours {total / own:.0f} tokens/s, '
    f'{total / compiled:.0f} with compiling'
  )
  theirs = load_theirs(flags.model)
  bos = [ours.vocabulary.bos_id]
  ids = [np.concatenate([bos, ours.vocabulary.encode(text)]) for text in texts]
  lengths = np.array([len(tokens) for tokens in ids])
  for way in (one_at_a_time, sorted_by_length, in_corpus_order):
    sums = np.zeros(len(ids))
    start = time.perf_counter()
    for chosen in way(lengths):
      sums[chosen] = nll_of(theirs, [ids[number] for number in chosen])
    seconds = time.perf_counter() - start
    apart = np.abs(sums / losses.nll_sum - 1).max()
    print(
      f'{way.__name__}: {total / seconds:.0f} tokens/s, ours is '
      f'{seconds / own:.2f}x as fast; sums differ by at most {apart:.1e}'
    )


if __name__ == '__main__':
  main()
