"""Groups of near-duplicates."""

import dataclasses
import json
import logging
import pathlib
import random
import shutil

import numpy as np
import pytest
from made_stores import write
from small_corpus import small_config

from configs import base
from infoprune_jax.config import (
  experiment as config_lib,
  validation,
)
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import artifacts
from infoprune_jax.runtime.workdir import (
  heldout_copies_dir,
  near_duplicates_dir,
)
from infoprune_jax.statistics import (
  heldout_copies,
  near_duplicates,
  signatures as signatures_lib,
)
from infoprune_jax.tokens import tables, tokenize
from infoprune_jax.tokens.token_store import TokenStore

LENGTH = 300  # tokens of a document
BEAM = ('--runner=DirectRunner',)


def varied(ids: list[int], share: float, rng: random.Random) -> list[int]:
  """The same with its end replaced."""
  kept = ids[: round(len(ids) * (1 - share))]
  return kept + [rng.randrange(900) for _ in range(len(ids) - len(kept))]


@pytest.fixture(scope='module')
def documents() -> list[list[int]]:
  """Of 60: 0, 20 and 40 near-duplicates, 1 and 41 copies; the rest alone."""
  rng = random.Random(0)
  made = [[rng.randrange(900) for _ in range(LENGTH)] for _ in range(60)]
  made[20], made[40] = (varied(made[0], 0.02, rng) for _ in range(2))
  made[41] = made[1]
  made[42] = varied(made[2], 0.6, rng)  # A quarter in common: no duplicate.
  made[5] = made[6] = []
  return made


def settings(near_duplicates: dict | None = None, **corpus) -> Config:
  edits = base.get_config()
  edits.near_duplicates.update(near_duplicates or {})
  edits.corpus.sources.mine = base.text('*.txt')
  edits.corpus.update(num_workers=1, **corpus)
  return config_lib.from_mapping(edits)


def content(workdir: str) -> dict[str, bytes]:
  folder = pathlib.Path(near_duplicates_dir(workdir))
  return {
    path.name: path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


@pytest.mark.parametrize('num_shards', [1, 3])
def test_near_duplicates_are_found_and_nothing_else(
  documents, tmp_path, num_shards
):
  """Of the scored documents; each group by the number of its first."""
  store = write(tmp_path, documents, num_shards)
  near_duplicates.run(settings(), str(tmp_path))
  path = near_duplicates_dir(str(tmp_path))
  found = tables.read_table(path)
  first = np.cumsum([0, *store.documents_per_shard])
  number = first[found['shard'].to_numpy()] + found['doc_index'].to_numpy()
  groups = dict(
    zip(number.tolist(), found['near_duplicate_group'].to_pylist(), strict=True)
  )
  sizes = dict(
    zip(number.tolist(), found['near_duplicates'].to_pylist(), strict=True)
  )
  # 20 and 41 are held out, and so is 5.
  assert groups == {n: 0 if n == 40 else n for n in range(60) if n % 3 != 2}
  assert sizes == {n: 2 if n in (0, 40) else 1 for n in groups}


def near_copies(workdir: str) -> dict[int, int]:
  """The near-copy of each held-out document, by its number in the store."""
  first = np.cumsum([0, *TokenStore.open(workdir).documents_per_shard])
  found = tables.read_table(heldout_copies_dir(workdir))
  number = first[found['shard'].to_numpy()] + found['doc_index'].to_numpy()
  return dict(zip(number.tolist(), found['near_copy'].to_pylist(), strict=True))


@pytest.mark.parametrize('num_shards', [1, 3])
@pytest.mark.parametrize('least', [0.0, 0.75])
def test_near_copies_of_held_out_documents_are_found(
  documents, tmp_path, num_shards, least, caplog
):
  """The first of them; a document without tokens has none."""
  write(tmp_path, documents, num_shards)
  with caplog.at_level(logging.INFO):
    near_duplicates.run(settings({'min_jaccard': least}), str(tmp_path))
  assert near_copies(str(tmp_path)) == {
    n: {20: 0, 41: 1}.get(n, -1) for n in range(60) if n % 3 == 2
  }
  assert '2 of 20 held-out documents have a near-copy' in caplog.text
  copied = heldout_copies.copied_texts(heldout_copies_dir(str(tmp_path)))
  assert copied.tolist() == [20, 41]


def test_near_copies_are_compared_if_groups_are(tmp_path):
  """2 shares about 6 of 10 shingles with 0, and 9 of 10 with 4."""
  rng = random.Random(1)
  first, other = ([rng.randrange(900) for _ in range(LENGTH)] for _ in range(2))
  held_out = varied(first, 0.25, rng)
  made = [first, other, held_out, other, varied(held_out, 0.05, rng)]
  many = {'bands': 200, 'rows_per_band': 2}  # All pairs are candidates.
  for least, expected in ((0.0, 0), (0.75, 4), (0.95, -1)):
    workdir = tmp_path / str(least)
    write(workdir, made, 1)
    near_duplicates.run(settings(many | {'min_jaccard': least}), str(workdir))
    assert near_copies(str(workdir)) == {2: expected}


def test_near_copies_are_added_to_a_finished_table(documents, tmp_path):
  """As in a workdir of an older version, which had none."""
  workdir = str(tmp_path)
  write(tmp_path, documents, 3)
  near_duplicates.run(settings(), workdir)
  expected, groups = near_copies(workdir), content(workdir)
  shutil.rmtree(heldout_copies_dir(workdir))
  near_duplicates.run(settings(), workdir)
  assert near_copies(workdir) == expected and content(workdir) == groups


def groups_of(workdir: str) -> dict[int, int]:
  """The group of each document of a store with one shard."""
  found = tables.read_table(near_duplicates_dir(workdir))
  columns = (
    found[name].to_pylist() for name in ('doc_index', 'near_duplicate_group')
  )
  return dict(zip(*columns, strict=True))


def test_pairs_with_less_in_common_are_apart(tmp_path):
  """0 and 1 share 9 of 10 shingles, 0 and 3 about 6 of 10."""
  rng = random.Random(1)
  first = [rng.randrange(900) for _ in range(LENGTH)]
  made = [first, varied(first, 0.05, rng), [], varied(first, 0.25, rng)]
  many = {'bands': 200, 'rows_per_band': 2}  # All pairs are candidates.
  for least, expected in (
    (0.0, {0: 0, 1: 0, 3: 0}),
    (0.75, {0: 0, 1: 0, 3: 3}),
    (0.95, {0: 0, 1: 1, 3: 3}),
  ):
    workdir = tmp_path / str(least)
    write(workdir, made, 1)
    near_duplicates.run(settings(many | {'min_jaccard': least}), str(workdir))
    assert groups_of(str(workdir)) == expected


def test_a_star_cuts_a_chain(tmp_path):
  """Each shares 8 of 10 shingles with the one before, and less with others."""
  rng = random.Random(2)
  chain = [[rng.randrange(900) for _ in range(LENGTH)]]
  for number in range(1, 5):
    ids = list(chain[-1])
    ids[30 * number : 30 * number + 30] = [
      rng.randrange(900) for _ in range(30)
    ]
    chain += [ids]
  made = [each for ids in chain for each in (ids, ids, [])]  # 3n + 2 held out
  many = {'bands': 200, 'rows_per_band': 2, 'min_jaccard': 0.75}
  for groups, expected in (
    ('connected', [0, 0, 0, 0, 0]),
    ('star', [0, 0, 6, 6, 12]),
  ):
    write(tmp_path / groups, made, 1)
    near_duplicates.run(
      settings(many | {'groups': groups}), str(tmp_path / groups)
    )
    found = groups_of(str(tmp_path / groups))
    assert [found[3 * n] for n in range(5)] == expected
    assert [found[3 * n + 1] for n in range(5)] == expected


def test_processes_beam_and_a_kill_do_not_matter(documents, tmp_path):
  def run(name: str, **corpus) -> str:
    write(tmp_path / name, documents, 3)
    near_duplicates.run(settings(**corpus), str(tmp_path / name))
    return str(tmp_path / name)

  expected = content(run('one'))
  assert content(run('beam', beam_options=BEAM)) == expected
  # As left by a kill between signatures and groups, and then by another.
  killed = tmp_path / 'killed'
  write(killed, documents, 3)
  made = settings()
  store = TokenStore.open(str(killed))
  path = near_duplicates_dir(str(killed))
  options = {
    **validation.to_plain(made.near_duplicates),
    **{'scheme': 'affine32', 'folds': 1, 'documents': 'all'},
  }
  signatures = artifacts.Artifact(
    *(f'{path}/signatures', 'signatures', 'near_duplicates', options),
    {'token_store': store.fingerprint},
  )
  signatures_lib.write(signatures, str(killed), store, made.near_duplicates, 1)
  for name in ('manifest.json', 'part-00001-of-00003.done'):
    (pathlib.Path(signatures.path) / name).unlink()
  near_duplicates.run(made, str(killed))
  assert content(str(killed)) == expected


def test_other_bands_are_refused(documents, tmp_path):
  write(tmp_path, documents, 1)
  made = settings()
  near_duplicates.run(made, str(tmp_path))
  near_duplicates.run(made, str(tmp_path))  # It is finished.
  bands = dataclasses.replace(made.near_duplicates, bands=3)
  with pytest.raises(UserError, match='near_duplicates: bands 14 -> 3'):
    near_duplicates.run(
      dataclasses.replace(made, near_duplicates=bands), str(tmp_path)
    )


@pytest.mark.parametrize(
  ('share', 'least', 'most'), [(0.5, 0, 0.12), (0.9, 0.97, 1)]
)
def test_pairs_are_found_as_often_as_the_formula_says(
  share, least, most, tmp_path
):
  """1 - (1 - s^8)^14 is 0.05 for a half in common, and 0.9996 for nine tenths."""
  rng = random.Random(0)
  pairs = 100
  made = []
  for _ in range(pairs):
    first = [rng.randrange(900) for _ in range(400)]
    # s of the union in common: of two equally long ones 2s / (1 + s) of each.
    made += [first, varied(first, 1 - 2 * share / (1 + share), rng), []]
  write(tmp_path, made, 1)
  near_duplicates.run(settings(), str(tmp_path))
  found = tables.read_table(near_duplicates_dir(str(tmp_path)))
  joined = np.count_nonzero(found['near_duplicates'].to_numpy() == 2) / 2
  assert least <= joined / pairs <= most


def test_a_split_by_groups_leaves_no_near_copies(tmp_path, caplog):
  """Each of 40 texts is there in 3 versions that differ in one word."""
  rng = random.Random(0)
  words = [''.join(rng.choices('abcdefgh', k=5)) for _ in range(300)]
  path, lines = tmp_path / 'corpus.jsonl', []
  for number in range(40):
    text = rng.choices(words, k=120)
    for version in range(3):
      text[30 * version] = 'other'
      lines.append({'id': f'{number}-{version}', 'text': ' '.join(text)})
  path.write_text('\n'.join(map(json.dumps, lines)))

  def run(name: str, **near_duplicates_edits) -> int:
    edits = small_config(str(path))
    edits.corpus.sources.made_up = base.jsonl(str(path), id_column='id')
    edits.corpus.update(split_by=name, num_workers=1, heldout_fraction=0.3)
    edits.near_duplicates.update(near_duplicates_edits)
    config = config_lib.from_mapping(edits)
    tokenize.run(config, str(tmp_path / name))
    near_duplicates.run(config, str(tmp_path / name))
    found = near_copies(str(tmp_path / name))
    assert len(found) > 10
    return sum(copy >= 0 for copy in found.values())

  assert run('content') > 10
  assert 'keeps most in one split' in caplog.text
  assert run('near_duplicate_group') == 0
  with pytest.raises(UserError, match='near_duplicates: bands 14 -> 15'):
    run('near_duplicate_group', bands=15)
