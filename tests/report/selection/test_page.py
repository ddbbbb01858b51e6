"""The page on selections: there before training, escaped, standing alone."""

import itertools
import logging
import posixpath
import re
import shutil

import pytest
from page_elements import (
  Elements,
  check_escaped,
  check_files_beside,
  check_stands_alone,
  check_structure,
)

from infoprune_jax.config.validation import UserError
from infoprune_jax.report.selection import page
from infoprune_jax.runtime import files, manifests
from infoprune_jax.runtime.workdir import keep_set_dir, selection_report_dir
from infoprune_jax.selection import keep_set


def page_of(workdir: str) -> str:
  path = selection_report_dir(workdir)
  return files.read_bytes(posixpath.join(path, 'index.html')).decode()


@pytest.fixture(scope='module')
def untrained(make_workdir):
  """A workdir up to what is selected."""
  config, workdir = make_workdir(num_documents=5, kinds=True)
  for folder in ('train', 'evaluate', 'reference', 'selection_report'):
    shutil.rmtree(posixpath.join(workdir, folder))
  page.run(config, workdir)
  return config, workdir


@pytest.fixture(scope='module')
def elements(untrained):
  return Elements(page_of(untrained[1]))


def test_hostile_text_and_names_stay_text(untrained, hostile):
  check_escaped(page_of(untrained[1]), hostile.values())


def test_stands_alone(untrained):
  check_stands_alone(page_of(untrained[1]))


def test_is_read_without_seeing_it(untrained):
  check_structure(page_of(untrained[1]))


def test_figures_and_tables_lie_beside_it(untrained):
  _, workdir = untrained
  check_files_beside(page_of(workdir), selection_report_dir(workdir))


def test_opens_with_a_table_and_a_plot(untrained):
  opening = page_of(untrained[1]).partition('<h2')[2]
  table, plot = opening.index('<table'), opening.index('<svg')
  text = re.sub(r'<[^>]*>', '', opening[:table])
  assert table < plot < min(opening.index('<details'), opening.index('<p '))
  assert len(text) < 200


def test_warns_before_the_tables(untrained, elements):
  _, workdir = untrained
  report = files.read_json(
    posixpath.join(selection_report_dir(workdir), 'selections.json')
  )
  shown = re.sub(r'\s+', ' ', ''.join(elements.text)).replace('\u202f%', ' %')
  first = shown.index('Kept and thrown away, in all')
  for arm in report['arms']:
    assert arm['rules'] in shown
    for line in arm['warnings']:
      assert shown.index(' '.join(line.split())) < first, line
  for heading in (
    'by kind of source',
    'Thrown away by top_nll, % of tokens, by kind and source',
    'near the lower threshold of',
    'near the upper threshold of',
    'random, random documents',
  ):
    assert heading in shown, heading
  assert 'Thrown away by random' not in shown
  assert not re.search(r'\b(nan|None|inf)\b', shown.rpartition('Setup')[0])
  tables = re.findall(r'<table[^>]*>', page_of(workdir))
  assert len(tables) > 10 and all('sortable' in table for table in tables)


def test_examples_may_have_no_score(untrained, tmp_path):
  config, made = untrained
  workdir = shutil.copytree(made, str(tmp_path / 'demo'))
  path = keep_set_dir(workdir, 'top_nll')
  summary = keep_set.read_summary(path)
  lists = [summary['least'], summary['drawn']['thrown']]
  lists.append(summary['near'][0]['thrown'])
  for example in itertools.chain(*lists):
    example['score'] = None
  files.write_record(posixpath.join(path, keep_set.SUMMARY), summary)
  page.run(config, workdir)
  assert page_of(workdir).count('no score') == sum(map(len, lists))


def test_is_always_rewritten_to_the_same_bytes(untrained, caplog):
  config, workdir = untrained
  before = page_of(workdir)
  path = selection_report_dir(workdir)
  files.write_text(posixpath.join(path, 'index.html'), 'stale')
  with caplog.at_level(logging.INFO, logger='infoprune_jax'):
    page.run(config, workdir)
  assert page_of(workdir) == before
  manifest = manifests.open_finished(path, 'selection report', 'x')
  assert {'index.html', 'selections.json', 'tables/arms.csv'} <= {
    *manifest['files']
  }
  assert posixpath.join(path, 'index.html') in caplog.text


@pytest.mark.parametrize(
  ('sizes', 'present', 'absent'),
  [
    (
      dict(arms=('random',), seeds=(3,), num_sources=1),
      ['1 arm, none trained yet. The scored', 'from 1 source.'],
      ['Overlap of two', 'change source', 'by kind', 'over their seeds.'],
    ),
    (
      dict(folds=2, arms=('random', 'top_nll'), seeds=(0,)),
      ['2 reference models scored one fold each, and their scales differ'],
      [],
    ),
    (
      dict(everything=True, num_sources=70, seeds=(0,)),
      [
        'of 70 sources the 60 with most tokens',
        'Keeps the same documents as full: training both does not',
      ],
      [],
    ),
  ],
)
def test_sensible_for_any_shape(make_workdir, sizes, present, absent):
  _, workdir = make_workdir(num_documents=5, **sizes)
  shown = re.sub(r'[ \n]+', ' ', ''.join(Elements(page_of(workdir)).text))
  for text in present:
    assert text in shown, text
  for text in absent:
    assert text not in shown, text
  assert not re.search(r'\b(nan|None|inf)\b', shown.rpartition('Setup')[0])


def test_one_process_writes_it(untrained):
  config, workdir = untrained
  with (
    files.lock(selection_report_dir(workdir)),
    pytest.raises(UserError, match='written by another process'),
  ):
    page.run(config, workdir)
