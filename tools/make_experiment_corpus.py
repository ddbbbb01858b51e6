r"""Writes the texts that the cells of configs/experiment.py are made of.

Command: python tools/make_experiment_corpus.py [--out=runs/experiment/corpus]

The texts are files of installed packages, as in configs/demo.py, of up to 24 kB
(100 kB if a program wrote them). So everyone who installs the versions in
constraints.txt gets the same. Each source is a file of JSONL, SOURCE.jsonl.zst,
with columns `id` (the path) and `text`. Beside what people wrote, there is

- generated_*: what code generators wrote;
- noise_characters: files that people wrote, with each character replaced by a
  random one; noise_words: with their words in random order;
- copies: files that people wrote, 2, 4, 10, 30 or 100 times each, with an equal
  number of bytes for each number of copies.

`sizes.json` has the bytes of text of each source, of texts up to each of LIMITS.
All is drawn by a fixed seed.
"""

import argparse
import glob
import hashlib
import json
import os
import pathlib
import random
import string
import sys
from collections.abc import Iterable, Iterator

import zstandard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import demo

LIMITS = (8_000, 24_000, 100_000)  # bytes of a text
LONGEST, GENERATED_LONGEST = LIMITS[1:]
SHORTEST = 200  # bytes
COPIES = (2, 4, 10, 30, 100)
NOISE_BYTES, COPIES_BYTES = (
  1_500_000,
  4_000_000,
)  # of each kind of noise; of all
GENERATED = {
  **demo.GENERATED,
  'generated_python': demo.Files(
    ('kubeflow-trainer-api',),
    ('kubeflow_trainer_api/**/*.py', '**/*_pb2.py', '**/*_pb2.pyi'),
  ),
}


def texts_of(files: demo.Files, longest: int) -> dict[str, str]:
  """Distinct texts of files, by their paths, in a random order.

  Paths are relative to the folder of the packages. Files that are not UTF-8 are
  left out.
  """
  root = os.path.commonpath([os.path.dirname(p) for p in files.paths])
  texts, seen = {}, set()
  for path in {p for g in files.paths for p in glob.glob(g, recursive=True)}:
    if os.path.isfile(path) and SHORTEST <= os.path.getsize(path) <= longest:
      try:
        text = pathlib.Path(path).read_bytes().decode()
      except UnicodeDecodeError:
        continue
      texts[os.path.relpath(path, root)] = text
  ordered = sorted(texts, key=lambda name: _digest(name))
  distinct = [
    name
    for name in ordered
    if (key := _digest(texts[name])) not in seen and not seen.add(key)
  ]
  return {name: texts[name] for name in distinct}


def _digest(text: str) -> bytes:
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def random_characters(text: str, rng: random.Random) -> str:
  """Printable characters, as many as a text has."""
  return ''.join(rng.choices(string.printable[:95], k=len(text)))


def shuffled_words(text: str, rng: random.Random) -> str:
  """The words of a text in random order, ten in a line."""
  words = text.split()
  rng.shuffle(words)
  lines = (' '.join(words[k : k + 10]) for k in range(0, len(words), 10))
  return '\n'.join(lines)


def up_to(texts: Iterable[str], num_bytes: int) -> Iterator[str]:
  """The first of some texts, up to a number of bytes."""
  total = 0
  for text in texts:
    total += len(text.encode())
    if total > num_bytes:
      return
    yield text


def copies(texts: Iterator[str]) -> Iterator[str]:
  """Groups of equal texts, with equal bytes for each number of copies."""
  for number in COPIES:
    for text in up_to(texts, COPIES_BYTES // len(COPIES) // number):
      yield from [text] * number


def write(
  folder: pathlib.Path, source: str, texts: dict[str, str]
) -> dict[int, int]:
  """Writes a source; returns the bytes of its texts up to each limit."""
  lines = ''.join(
    json.dumps({'id': name, 'text': text}) + '\n'
    for name, text in texts.items()
  )
  path = folder / f'{source}.jsonl.zst'
  path.write_bytes(zstandard.ZstdCompressor(level=19).compress(lines.encode()))
  sizes = [len(text.encode()) for text in texts.values()]
  print(f'{source:20}{len(sizes):7,} texts{sum(sizes) / 1e6:8.2f} MB')
  return {limit: sum(s for s in sizes if s <= limit) for limit in LIMITS}


def numbered(texts: Iterable[str]) -> dict[str, str]:
  """Texts by their numbers."""
  return {str(number): text for number, text in enumerate(texts)}


def main() -> None:
  """Writes all sources."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', default='runs/experiment/corpus')
  folder = pathlib.Path(parser.parse_args().out)
  folder.mkdir(parents=True, exist_ok=True)
  sources = {
    name: texts_of(files, LONGEST) for name, files in demo.WRITTEN.items()
  }
  written = [text for texts in sources.values() for text in texts.values()]
  rng = random.Random(0)
  rng.shuffle(written)
  for name, files in GENERATED.items():
    sources[name] = texts_of(files, GENERATED_LONGEST)
  for name, spoil in (
    ('noise_characters', random_characters),
    ('noise_words', shuffled_words),
  ):
    rng.shuffle(written)
    sources[name] = numbered(
      spoil(text, rng) for text in up_to(written, NOISE_BYTES)
    )
  rng.shuffle(written)
  sources['copies'] = numbered(copies(iter(written)))
  sizes = {name: write(folder, name, texts) for name, texts in sources.items()}
  (folder / 'sizes.json').write_text(json.dumps(sizes, indent=1) + '\n')


if __name__ == '__main__':
  main()
