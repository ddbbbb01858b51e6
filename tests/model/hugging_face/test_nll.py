"""The NLL of documents under imported models equals that of transformers.

Weights are seeded noise, written without torch, so that NLL that transformers
gave is compared wherever the tests run (`tests/golden/hugging_face.jsonl`).
Where torch is installed transformers computes it again; `--refresh-goldens`
rewrites the file there.
"""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from hugging_face_folders import (
  load_folder,
  random_params,
  their_tensors,
  write_folder,
)
from hugging_face_models import MODELS, options
from random_store import RandomStore

from infoprune_jax.batches import packing
from infoprune_jax.config.experiment import ScoringConfig
from infoprune_jax.score import scorer

GOLDEN = pathlib.Path('tests/golden/hugging_face.jsonl')
LENGTHS = [5, 64, 100, 1, 33, 120, 17, 48]
PACKED = {'sequence_length': 128, 'window_overlap': 0}
WINDOWS = {'sequence_length': 48, 'window_overlap': 16}
TOLERANCE = 1e-4  # relative


class Store(RandomStore):
  path = 'a store'

  def column(self, name):
    assert name == 'num_tokens'
    return self.lengths


STORE = Store(LENGTHS)


def golden() -> dict[str, dict]:
  """The config.json and the NLL of documents, by the name of the model."""
  lines = GOLDEN.read_text().splitlines() if GOLDEN.exists() else []
  return {line['name']: line for line in map(json.loads, lines)}


def write_model(path, values) -> str:
  """Returns a digest of their tensors: it changes with names and layouts."""
  params = random_params(values)
  write_folder(path, values, their_tensors(values, params))
  data = (path / 'model.safetensors').read_bytes()
  return hashlib.sha256(data).hexdigest()[:16]


def our_nll(path, layout) -> np.ndarray:
  """Of each document, laid out in sequences so."""
  mesh, opened, params = load_folder(path)
  scoring = ScoringConfig(per_device_batch_size=2, dtype='float32', **layout)
  program = scorer.compile_scorer(
    opened.model, scoring, opened.vocab_size, mesh
  )
  documents = np.arange(len(LENGTHS))
  shards = np.zeros(len(LENGTHS), int)
  return program.document_nll(params, STORE, shards, documents)[0]


def their_nll(path, layout) -> np.ndarray:
  """The same, by a model of transformers that is given one segment at a time."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=torch.float32, attn_implementation='eager'
  ).eval()
  sums = np.zeros(len(LENGTHS))
  for document, length in enumerate(LENGTHS):
    plan = packing.pack(
      np.array([length]),
      layout['sequence_length'],
      layout['window_overlap'],
      seed=0,
    )
    sequences = packing.PackedSequences(
      STORE, np.zeros(1, int), np.array([document]), plan
    )
    for number in range(len(sequences)):
      sequence = sequences[number]
      for segment in range(1, sequence['decoder_segment_ids'].max() + 1):
        own = sequence['decoder_segment_ids'] == segment
        ids, targets, weights = (
          torch.tensor(sequence[f'decoder_{name}'][own].astype(np.int64))
          for name in ('input_tokens', 'target_tokens', 'loss_weights')
        )
        with torch.no_grad():
          logits = model(ids[None]).logits[0].double()
        nll = torch.nn.functional.cross_entropy(
          logits, targets, reduction='none'
        )
        sums[document] += float((nll * weights).sum())
  return sums


@pytest.mark.parametrize('name', MODELS)
def test_documents_have_the_nll_of_the_golden_file(name, tmp_path):
  line = golden()[name]
  assert write_model(tmp_path, line['config']) == line['tensors']
  found = our_nll(tmp_path, PACKED)
  np.testing.assert_allclose(found, line['nll'], rtol=TOLERANCE)


@pytest.mark.parametrize('layout', [PACKED, WINDOWS])
@pytest.mark.parametrize('name', MODELS)
def test_documents_have_the_nll_of_transformers(
  name, layout, tmp_path, request
):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('torch')
  kind, given = options(name)
  values = getattr(transformers, kind)(**given).to_dict()
  digest = write_model(tmp_path, values)
  theirs = their_nll(tmp_path, layout)
  if request.config.getoption('--refresh-goldens') and layout == PACKED:
    line = {'name': name, 'config': values, 'tensors': digest}
    lines = {**golden(), name: {**line, 'nll': theirs.round(5).tolist()}}
    text = [json.dumps(lines[n]) + '\n' for n in MODELS if n in lines]
    GOLDEN.write_text(''.join(text))
  np.testing.assert_allclose(our_nll(tmp_path, layout), theirs, rtol=TOLERANCE)
