"""The stage that scores: what it goes on with, and what it refuses."""

import dataclasses
import os

import jax
import pytest

from infoprune_jax import stages
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import scores_dir
from infoprune_jax.score import references, scorer


def test_a_store_that_changed_under_a_half_finished_table(small, tmp_path):
  """Neither its shards nor the model go with another corpus."""
  workdir, other = str(tmp_path / 'work'), str(tmp_path / 'other')
  for job in ('tokenize', 'reference', 'score'):
    stages.run(small, workdir, job)
  scores = scores_dir(workdir)
  os.remove(f'{scores}/{manifests.MANIFEST}')
  os.remove(f'{scores}/part-00001-of-00003.done')
  corpus = dataclasses.replace(small.corpus, seed=7)
  changed = dataclasses.replace(small, corpus=corpus)
  for job in ('tokenize', 'reference'):
    stages.run(changed, other, job)
  os.rename(f'{workdir}/token_store', f'{workdir}/was')
  os.rename(f'{other}/token_store', f'{workdir}/token_store')
  with pytest.raises(UserError) as refused:
    stages.run(changed, workdir, 'score')
  again = 'the token store was made again'
  assert f'{again} (reference)' in str(refused.value)
  # With a reference model of the new store it is the table that is refused.
  os.rename(f'{workdir}/reference', f'{workdir}/reference_was')
  os.rename(f'{other}/reference', f'{workdir}/reference')
  with pytest.raises(UserError) as refused:
    stages.run(changed, workdir, 'score')
  for words in (again, "the run 'reference' was made again", '(scores)'):
    assert words in str(refused.value)
  assert not os.path.exists(f'{scores}/part-00001-of-00003.done')


def test_a_model_that_no_device_holds_is_told(small, tmp_path, monkeypatch):
  workdir = str(tmp_path / 'work')
  for job in ('tokenize', 'reference'):
    stages.run(small, workdir, job)

  def load(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')

  monkeypatch.setattr(references, 'load', load)
  with pytest.raises(UserError) as refused:
    stages.run(small, workdir, 'score')
  for words in (
    'The parameters of the model for nll_sum,',
    'with mesh.fsdp or',
  ):
    assert words in str(refused.value)
  monkeypatch.undo()
  stages.run(small, workdir, 'score')


def test_no_batch_waits_for_a_program_of_the_first_shard(
  small, tmp_path, monkeypatch
):
  needed, compiled = set(), set()
  compiles, program = scorer.Scorer.compile, scorer.Scorer.program
  monkeypatch.setattr(
    scorer.Scorer,
    'compile',
    lambda self, counts: compiled.update(counts) or compiles(self, counts),
  )
  monkeypatch.setattr(
    scorer.Scorer,
    'program',
    lambda self, most: needed.add(most) or program(self, most),
  )
  corpus = dataclasses.replace(small.corpus, num_shards=1)
  config = dataclasses.replace(small, corpus=corpus)
  workdir = str(tmp_path / 'work')
  for job in ('tokenize', 'reference'):
    stages.run(config, workdir, job)
  needed.clear()
  stages.run(config, workdir, 'score')
  assert needed - {1} and needed <= compiled | {1}  # 1: `compile_scorer`.
