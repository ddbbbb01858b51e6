"""One word for one thing: words that have been replaced do not come back."""

import pathlib
import re

import pytest

from configs import base

ROOT = pathlib.Path(base.__file__).parents[1]
FILES = [
  path
  for pattern in (
    *('*.md', 'docs/*.md', 'configs/*.py', 'tools/*.py'),
    *('infoprune_jax/**/*.py', 'infoprune_jax/**/*.jinja'),
  )
  for path in sorted(ROOT.glob(pattern))
]
# What is banned, and the word to write.
REPLACED = {
  r'[Mm]end(ing|ed)?\b': 'fix, or repair_hint',
  r'HOW_COMPUTED': 'RUNTIME_ONLY_FIELDS',
  r'_NOT_DECISIVE': '_NOT_FINGERPRINTED',
  r'_own_share|_over_vocabulary': '_local_vocab_shard, _merge_vocab_shards',
  r'loses_text': 'is_lossy',
  r'(?<!a )tenths?\b(?! of (a second|the time|what|the arm))': 'decile',
  # Old names of options stay in RENAMED of config/validation.py.
  r'(?<!\'|_)row_length|(curve_tokens|loss_tile|on_bad_row)(?!\')': 'see RENAMED',
  r'(heldout|reference|decay)_share(?!\')': '_fraction',
  r'num_parts(?!\')|finish(ed)?_part|part_(name|table)': 'shard',
  r'documents_per_part|[A-Za-z]*PartTask|PartScorer': 'shard',
  r'packed_rows|empty_rows|PackedRows|BadRow|rows_of': 'sequence, record',
  r'max_pieces|pieces_per_row': 'segments',
  r'bytes_a_device|batch_ways|user_errors|belongs_apart': 'see house style',
  r'[Ff]ound( =|: \w+[,\[)]|\[)': 'the noun that it is',
  r'([Nn]ats|[Bb]its|[Tt]okens) an? (token|byte|second|step|device)\b': 'per',
}


def test_there_are_files():
  assert len(FILES) > 150


@pytest.mark.parametrize('pattern', REPLACED)
def test_replaced_words_stay_away(pattern):
  lines = [
    f'{path.relative_to(ROOT)}:{number}: {line.strip()}'
    for path in FILES
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if re.search(rf'\b(?:{pattern})|(?<=_)(?:{pattern})', line)
  ]
  assert not lines, f'write {REPLACED[pattern]}: ' + '\n'.join(lines)
