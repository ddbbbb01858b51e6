"""A step that does not fit its devices, as JAX says it."""

import dataclasses
import os

import jax
import pytest

from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.train import runs, state as state_lib


@pytest.fixture
def workdir(store_workdir, tmp_path) -> str:
  for folder in ('token_store', 'vocabulary'):
    os.symlink(f'{store_workdir}/{folder}', tmp_path / folder)
  return str(tmp_path)


def with_training(config, **fields):
  training = dataclasses.replace(config.reference.training, **fields)
  reference = dataclasses.replace(config.reference, training=training)
  return dataclasses.replace(config, reference=reference)


def exhausted(*_):
  raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')


def only_fits(monkeypatch, parts: int, remat: str, when: str) -> None:
  """Less than so many parts, or another policy, fails to compile or to run."""
  compiled = state_lib._compile.__wrapped__

  def compile_in_vain(model, training, *rest):
    enough = training.gradient_accumulation_steps >= parts
    if enough and model.remat == remat:
      return compiled(model, training, *rest)
    if when == 'compiling':
      exhausted()
    program = compiled(model, training, *rest)
    # It compiles, and no device holds it.
    step = type('Step', (), {'memory_analysis': exhausted})
    step.__call__ = exhausted
    return dataclasses.replace(program, step=step())

  monkeypatch.setattr(state_lib, '_compile', compile_in_vain)


@pytest.mark.parametrize('when', ['compiling', 'running'])
def test_shards_that_fit_are_named_and_the_run_goes_on_so(
  small, workdir, monkeypatch, when
):
  only_fits(monkeypatch, 2, 'none', when)
  config = with_training(small, batch_size=16)
  with pytest.raises(UserError) as error:
    runs.run_reference(config, workdir)
  for words in (
    'reference: a step of 16 sequences of 64 tokens, with',
    "steps=1 and model.remat='none', needs more memory",
    "training.gradient_accumulation_steps=2 and model.remat='none' fits.",
  ):
    assert words in str(error.value), error.value
  assert os.path.exists(f'{reference_dir(workdir)}/begun.json')
  config = with_training(config, gradient_accumulation_steps=2)
  runs.run_reference(config, workdir)
  assert manifests.read_manifest(reference_dir(workdir), 'reference')


@pytest.mark.parametrize(
  'remat, advice',
  [('full', "=2 and model.remat='full' fits"), ('never', 'with mesh.fsdp')],
)
def test_less_is_kept_where_shards_are_not_enough(
  small, workdir, monkeypatch, remat, advice
):
  only_fits(monkeypatch, 1, remat, 'compiling')
  with pytest.raises(UserError, match=advice):
    runs.run_reference(with_training(small, batch_size=16), workdir)


def test_other_errors_stay_what_they_are(small, workdir, monkeypatch):
  def broken(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')

  monkeypatch.setattr(state_lib, '_compile', broken)
  with pytest.raises(jax.errors.JaxRuntimeError, match='something else'):
    runs.run_reference(small, workdir)
