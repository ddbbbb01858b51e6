"""Attributes line up with the documents, as the Dolma toolkit has it."""

import bz2
import gzip
import io
import json
import lzma
import pathlib
import shutil
import types
from typing import Any

import pytest

from configs import base
from infoprune_jax.config.validation import UserError
from infoprune_jax.export import dolma
from infoprune_jax.runtime import files


@pytest.fixture
def dolma_edits(edits, workdir, corpus, tmp_path, select_all):
  """A config over documents in Dolma's layout, some of them no documents."""
  shutil.copytree(corpus / 'dolma', tmp_path / 'dolma')
  folder = tmp_path / 'dolma/documents/2020'
  folder.mkdir()
  records = [{'id': 'empty', 'text': '', 'source': 'x'}, {'id': 7, 'text': 'q'}]
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (folder / 'c.jsonl').write_text(text + '\n{"id": "last", "text": "z"}')
  edits.corpus.sources = {}
  edits.corpus.sources.news = base.jsonl(
    str(tmp_path / 'dolma/documents'), id_column='id'
  )
  edits.corpus.on_bad_record = 'drop'
  edits.select.arms.often = base.arm('repeat', 'if(num_tokens > 60, 3, 0)')
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  return edits


def documents_of(path: pathlib.Path) -> list[dict[str, Any]]:
  data = path.read_bytes()
  data = gzip.decompress(data) if path.suffix == '.gz' else data
  return [json.loads(line) for line in data.splitlines() if line.strip()]


def mixed(folder: pathlib.Path, attributes: str) -> list[dict[str, Any]]:
  """What `dolma mix` reads: documents, each with the attributes of its line."""
  found = []
  for path in sorted(folder.rglob('documents/**/*.jsonl*')):
    beside = str(path).replace('/documents/', f'/attributes/{attributes}/')
    documents, lines = documents_of(path), documents_of(pathlib.Path(beside))
    assert len(documents) == len(lines)
    for document, line in zip(documents, lines, strict=True):
      assert line['id'] == document['id']
      assert isinstance(line['attributes'], dict)
      found.append({**document, 'attributes': line['attributes']})
  return found


def test_mixing_by_an_attribute_gives_what_an_arm_keeps(
  dolma_edits, export, tmp_path, kept_in
):
  folder = export('dolma_attributes', 'every-arm')
  shutil.copytree(folder / 'news/attributes', tmp_path / 'dolma/attributes')
  documents = mixed(tmp_path / 'dolma', 'infoprune')
  assert len(documents) == 123
  for name in ('top', 'random-seed-0', 'random-seed-1', 'everything'):
    column = f'infoprune__{name.replace("-", "_")}_keep'
    spans = [d['attributes'][column] for d in documents]
    assert all(len(span) == 1 for span in spans)
    assert [span[0][:2] for span in spans] == [
      [0, len(d['text'])] for d in documents
    ]
    kept = [
      str(d['id'])
      for d, span in zip(documents, spans, strict=True)
      if span[0][2] > 0.5
    ]
    assert kept == kept_in(name)
  repeats = [d['attributes']['infoprune__often_repeats'] for d in documents]
  assert {span[0][2] for span in repeats} == {0.0, 3.0}
  assert [
    str(d['id'])
    for d, span in zip(documents, repeats, strict=True)
    for _ in range(int(span[0][2]))
  ] == kept_in('often')


def test_values_are_those_of_the_scores(
  dolma_edits, export, tmp_path, scores_of
):
  folder = export('dolma_attributes', 'every-arm')
  shutil.copytree(folder / 'news/attributes', tmp_path / 'dolma/attributes')
  expected = scores_of()
  seen = 0
  for document in mixed(tmp_path / 'dolma', 'infoprune'):
    record = expected.get(str(document['id']))
    for name in ('nll', 'unigram_nll'):
      span = document['attributes'].get(f'infoprune__{name}_per_token')
      assert (span is None) == (record is None)
      if record:
        value = record[f'{name}_sum'] / record['num_tokens']
        assert span == [[0, len(document['text']), value]]
        seen += 1
  assert seen == 2 * len(expected) > 0


def test_a_line_names_its_source(dolma_edits, export):
  folder = export('dolma_attributes', 'every-arm') / 'news/attributes/infoprune'
  lines = documents_of(folder / '2020/c.jsonl')
  assert [(line['id'], line['source']) for line in lines] == [
    ('empty', 'x'),
    (7, 'news'),
    ('last', 'news'),
  ]


def test_only_jsonl_has_documents(export):
  with pytest.raises(UserError, match="'books' is of format 'parquet'"):
    export('dolma_attributes')


def test_two_files_of_one_name_are_refused(
  edits, export, workdir, select_all, corpus, tmp_path
):
  shutil.copytree(corpus / 'dolma', tmp_path / 'one/dolma')
  shutil.copytree(corpus / 'dolma', tmp_path / 'two/dolma')
  edits.corpus.sources = {}
  edits.corpus.sources.news = base.jsonl(f'{tmp_path}/one', f'{tmp_path}/two')
  shutil.rmtree(workdir)
  select_all(edits, workdir)
  with pytest.raises(UserError, match='give each a source of its own'):
    export('dolma_attributes')


@pytest.mark.parametrize(
  'extension, unpack',
  [('gz', gzip.decompress), ('bz2', bz2.decompress), ('xz', lzma.decompress)],
)
def test_attributes_are_compressed_as_documents_are(extension, unpack):
  file = types.SimpleNamespace(path=f'documents/x.jsonl.{extension}')
  written = io.BytesIO()
  # As in an artifact, whose file is closed by who opened it.
  target = files._HashingWriter(written)
  with dolma._compressed(types.SimpleNamespace(file=file), target) as put:
    put(b'a line\n' * 9)
  assert unpack(written.getvalue()) == b'a line\n' * 9
