"""The page: escaped, standing alone, and always written."""

import csv
import dataclasses
import io
import logging
import posixpath
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from page_elements import (
  Elements,
  check_escaped,
  check_files_beside,
  check_stands_alone,
  check_structure,
)

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.results import inputs, page, statistics
from infoprune_jax.runtime import artifacts, files, manifests
from infoprune_jax.runtime.workdir import (
  evaluation_dir,
  heldout_copies_dir,
  report_dir,
)
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore


@pytest.fixture(scope='module')
def written(make_workdir):
  config, workdir = make_workdir(num_documents=20)
  page.run(config, workdir)
  path = posixpath.join(report_dir(workdir), 'index.html')
  return config, workdir, files.read_bytes(path).decode()


@pytest.fixture(scope='module')
def elements(written):
  return Elements(written[2])


def test_hostile_text_and_names_stay_text(written, hostile):
  check_escaped(written[2], hostile.values())


def test_stands_alone(written):
  check_stands_alone(written[2])


def test_is_read_without_seeing_it(written):
  check_structure(written[2])


def test_figures_and_tables_lie_beside_it_and_none_of_other_arms(written):
  config, workdir, text = written
  other = posixpath.join(report_dir(workdir), 'figures/forest_other.svg')
  files.write_text(other, 'stale')
  page.run(config, workdir)
  check_files_beside(text, report_dir(workdir))


def test_the_losses_as_csv(written):
  config, workdir, _ = written
  path = report_dir(workdir)
  report = files.read_json(posixpath.join(path, 'report.json'))
  text = files.read_bytes(posixpath.join(path, 'tables/losses.csv')).decode()
  for row, arm in zip(
    csv.DictReader(io.StringIO(text)), report['arms'], strict=True
  ):
    assert row['arm'] == arm['name'] and row['arm rules'] == arm['rules']
    bits = arm['macro_bits_per_byte']
    mean = row['bits per byte, mean over sources']
    assert float(mean) == pytest.approx(bits['mean'])
    assert float(row['bits per byte by seed seed-1']) == pytest.approx(
      bits['values'][1]
    )
    if arm['name'] != config.report.baseline:
      difference = arm['decisive']
      name = 'minus random, bits per byte [95 % interval]'
      for key, suffix in (('estimate', ''), ('low', ' low'), ('high', ' high')):
        assert float(row[name + suffix]) == pytest.approx(difference[key])


def test_the_result_comes_first(written, elements):
  config, workdir, _ = written
  report = files.read_json(posixpath.join(report_dir(workdir), 'report.json'))
  shown = ' '.join(''.join(elements.text).split())
  where = shown.index(report['found'][0])
  assert where < shown.index('Losses of the texts that decide')
  for line in report['found']:
    assert line in shown
  for caution in report['cautions']:
    assert caution in shown
  for arm in config.arms:
    assert arm in shown
  for fingerprint in report['fingerprints'].values():
    assert fingerprint in shown


def test_notes_of_the_config_are_shown(written, hostile, tmp_path):
  config, workdir, _ = written
  workdir = shutil.copytree(workdir, str(tmp_path / 'demo'))
  notes = ('Less text was tried.', hostile['text'])
  section = dataclasses.replace(config.report, notes=notes)
  page.run(dataclasses.replace(config, report=section), workdir)
  path = report_dir(workdir)
  html = files.read_bytes(posixpath.join(path, 'index.html')).decode()
  shown = ''.join(Elements(html).text)
  assert shown.index(notes[0]) < shown.index('Losses of the texts')
  check_escaped(html, hostile.values())
  report = files.read_json(posixpath.join(path, 'report.json'))
  assert report['terminal'][-2:] == list(notes)


def test_comparisons_are_a_table(written):
  _, workdir, _ = written
  path = report_dir(workdir)
  report = files.read_json(posixpath.join(path, 'report.json'))
  file = posixpath.join(path, 'tables/comparisons.csv')
  text = files.read_bytes(file).decode()
  rows = list(csv.DictReader(io.StringIO(text)))
  name = 'difference, bits per byte [95 % interval]'
  assert len(rows) == 6
  for row, one in zip(rows, report['comparisons'], strict=True):
    assert [row['arm'], row['against'], row['verdict']] == [
      one['arm'],
      one['reference'],
      one['verdict'],
    ]
    assert float(row[name]) == pytest.approx(one['decisive']['estimate'])
    assert int(row['sources lower']) == one['wins']['better']


def test_is_always_rewritten_to_the_same_bytes(written, caplog):
  config, workdir, text = written
  path = posixpath.join(report_dir(workdir), 'index.html')
  files.write_text(path, 'stale')
  with caplog.at_level(logging.INFO, logger='infoprune_jax'):
    page.run(config, workdir)
  assert files.read_bytes(path).decode() == text
  manifest = manifests.open_finished(report_dir(workdir), 'report', 'report')
  assert {'index.html', 'report.json', 'figures/curves.pdf'} <= {
    *manifest['files']
  }
  assert len(manifest['inputs']) == 6 + 6 + 10 + 10
  assert path in caplog.text


@pytest.mark.parametrize(
  'sizes, present, absent',
  [
    (
      dict(arms=('random',), seeds=(3,), num_sources=1),
      ['Only one arm', '1 arm, 1 seed. All losses'],
      ['Overlap of two', 'Changes of the mix', 'better than', 'three measures'],
    ),
    (
      dict(arms=('random', 'full')),
      ['prunes nothing', 'on all of the held-out texts'],
      ['equal total FLOPs'],
    ),
    (
      dict(everything=True),
      [
        'everything at equal total FLOPs (reference model and scoring inc',
        'everything needs no score. It trains on the reference split too',
        'everything: 1\u202f100 steps',
      ],
      [],
    ),
    (
      dict(folds=2, arms=('random', 'top_nll')),
      [
        'num_tokens; scores are ranked within the fold of each reference model',
        '2 reference models scored one fold each',
        'are ranks within their fold',
      ],
      ['random 50 % of tokens; scores'],
    ),
    (
      dict(num_sources=90, seeds=(0, 1, 2), arms=('random', 'top_nll')),
      ['the 40 lowest and the 40 highest of 90', 'by Student\u2019s t'],
      [],
    ),
  ],
)
def test_sensible_for_any_shape(make_workdir, sizes, present, absent):
  config, workdir = make_workdir(num_documents=12, **sizes)
  page.run(config, workdir)
  path = posixpath.join(report_dir(workdir), 'index.html')
  written = files.read_bytes(path)
  shown = re.sub(r'[ \n]+', ' ', ''.join(Elements(written.decode()).text))
  for text in present:
    assert text in shown, text
  for text in absent:
    assert text not in shown, text
  results = shown.rpartition('Setup')[0]
  assert not re.search(r'\b(nan|None|inf)\b', results)
  assert len(written) < 3_000_000


def test_every_table_sorts(written):
  tables = re.findall(r'<table[^>]*>', written[2])
  assert len(tables) > 10
  assert all('sortable' in table for table in tables)
  bodies = re.findall(r'<tbody>.*?</tbody>', written[2], re.DOTALL)
  assert len(bodies) == len(tables)
  for attributes, shown in re.findall(
    r'<td([^>]*)>([^<]*\u202f[^<]*)<', ''.join(bodies)
  ):
    assert 'data-value' in attributes, shown  # 1 234 sorts as a number.


def test_one_process_writes_a_report(written):
  config, workdir, _ = written
  with (
    files.lock(report_dir(workdir)),
    pytest.raises(UserError, match='written by another process'),
  ):
    page.run(config, workdir)


def write_near_copies(config, workdir, is_copied) -> int:
  """A table of near-copies of held-out documents; returns how many have one."""
  arm, seed = config.runs[0]
  losses = tables.read_table(evaluation_dir(workdir, arm, seed))
  mask = is_copied(losses)
  columns = {
    name: losses[name].to_numpy()
    for name in ('shard', 'doc_index', 'content_hash')
  }
  table = pa.table({**columns, 'near_copy': np.where(mask, 7, -1)})
  artifact = artifacts.Artifact(
    *(heldout_copies_dir(workdir), 'table of near-copies', 'near_duplicates'),
    *({}, {'token_store': TokenStore.open(workdir).fingerprint}),
  ).begin()
  marker = tables.write_shard(artifact, table, 0, 1)
  artifact.finish(
    marker['files'], num_examples=len(mask), with_near_copy=int(mask.sum())
  )
  return int(mask.sum())


def test_losses_without_near_copies_stand_beside_all(written, tmp_path, caplog):
  config, workdir, text = written
  assert 'not looked for' in ' '.join(text.split())
  workdir = shutil.copytree(workdir, str(tmp_path / 'demo'))

  def is_copied(losses):
    return losses['content_hash'].to_numpy() % 3 == 0

  count = write_near_copies(config, workdir, is_copied)
  with caplog.at_level(logging.INFO):
    page.run(config, workdir)
  report = files.read_json(posixpath.join(report_dir(workdir), 'report.json'))
  found = report['near_copies']
  assert 'heldout_copies' in report['fingerprints']
  assert found['with_near_copy'] == count and found['documents'] == 60
  assert report['cautions'][0].startswith(f'{count} of 60 held-out documents')
  assert 'without texts that have near-copies' in caplog.text
  # The half that judges, without the texts of the table.
  _, judged = statistics.halves(inputs.heldout_losses(config, workdir))
  kept = judged.where(judged.content_hash % 3 != 0)
  assert found['texts'] == len(judged.source)
  assert found['texts_with_near_copy'] == found['texts'] - len(kept.source) > 0
  measure = report['measure']
  without = statistics.losses_by_seed(kept)[measure].mean(axis=1)
  base = config.arms.index(config.report.baseline)
  for a, arm in enumerate(found['arms']):
    assert arm['name'] == config.arms[a]
    assert arm['all'][measure] == report['arms'][a][measure]['mean']
    assert arm['all']['difference'] == report['arms'][a]['decisive']
    assert arm['without'][measure] == pytest.approx(without[a], abs=1e-12)
    assert arm['without']['difference']['estimate'] == pytest.approx(
      without[a] - without[base], abs=1e-12
    )
  check_files_beside(
    files.read_bytes(
      posixpath.join(report_dir(workdir), 'index.html')
    ).decode(),
    report_dir(workdir),
  )


def test_a_page_where_all_texts_have_near_copies(written, tmp_path):
  config, workdir, _ = written
  workdir = shutil.copytree(workdir, str(tmp_path / 'demo'))
  write_near_copies(config, workdir, lambda losses: np.full(len(losses), True))
  page.run(config, workdir)
  report = files.read_json(posixpath.join(report_dir(workdir), 'report.json'))
  arms = report['near_copies']['arms']
  assert [arm['without'] for arm in arms] == [None] * len(config.arms)


def test_near_copies_of_another_corpus_are_refused(written, tmp_path):
  config, workdir, _ = written
  workdir = shutil.copytree(workdir, str(tmp_path / 'demo'))
  path = heldout_copies_dir(workdir)
  artifacts.Artifact(
    path, 'table', 'near_duplicates', {}, {'token_store': 'another'}
  ).finish({}, num_examples=0, with_near_copy=0)
  with pytest.raises(UserError, match='heldout_copies|table of near-copies'):
    page.run(config, workdir)
