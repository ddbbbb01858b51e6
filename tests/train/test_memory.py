"""A step that does not fit its devices, as JAX says it."""

import dataclasses
import logging
import os
import types

import jax
import numpy as np
import pytest

from infoprune_jax.config.model import REMAT
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import memory as device_memory, mesh as mesh_lib
from infoprune_jax.runtime import manifests
from infoprune_jax.runtime.workdir import reference_dir
from infoprune_jax.train import memory, runs, state as state_lib


@pytest.fixture
def workdir(store_workdir, tmp_path) -> str:
  for folder in ('token_store', 'vocabulary'):
    os.symlink(f'{store_workdir}/{folder}', tmp_path / folder)
  return str(tmp_path)


def with_training(config, **fields):
  training = dataclasses.replace(config.reference.training, **fields)
  model = dataclasses.replace(
    config.reference.model, remat='none', scan_unroll=2, loss_chunk_tokens=2048
  )
  reference = dataclasses.replace(
    config.reference, model=model, training=training
  )
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


FREE = dict(remat='auto', scan_unroll=0, loss_chunk_tokens=0)


@pytest.fixture(scope='module')
def mesh(small):
  return mesh_lib.make_mesh(small.mesh)


class Steps:
  """Compiles steps that take one gigabyte less with each policy."""

  def __init__(self):
    self.tried = []

  def __call__(self, model):
    self.tried.append(model.remat)
    need = types.SimpleNamespace(
      argument_size_in_bytes=(4 - REMAT.index(model.remat)) * 10**9,
      temp_size_in_bytes=0,
      output_size_in_bytes=0,
      alias_size_in_bytes=0,
    )
    return types.SimpleNamespace(memory_analysis=lambda: need)


@pytest.mark.parametrize(
  'gigabytes, remat, tried',
  [
    (0, 'none', 1),  # A CPU does not say what it has.
    (5, 'none', 1),
    (4, 'minimal', 2),  # A tenth is spared.
    (2.5, 'save_qkv_proj', 3),
    (0.5, 'full', 4),  # The smallest is taken without a trial.
  ],
)
def test_the_first_policy_that_fits_is_taken_and_told(
  small, mesh, monkeypatch, caplog, gigabytes, remat, tried
):
  bytes_limit = int(gigabytes * 10**9)
  monkeypatch.setattr(device_memory, '_own_limit', lambda mesh: bytes_limit)
  model, steps = dataclasses.replace(small.model, **FREE), Steps()
  with caplog.at_level(logging.INFO):
    chosen = memory.choose(model, small.train.training, 50257, mesh, steps)
  assert chosen.remat == remat and steps.tried == [*REMAT[:tried]]
  assert chosen.scan_unroll == (1 if gigabytes == 0.5 else 2)
  assert dataclasses.replace(chosen, **FREE) == model
  [line] = caplog.messages
  assert f"model.remat='{remat}', model.scan_unroll=" in line


def test_what_the_config_says_is_taken_without_a_trial(small, mesh, caplog):
  given = dataclasses.replace(
    small.model, remat='minimal', scan_unroll=1, loss_chunk_tokens=7
  )
  steps = Steps()
  with caplog.at_level(logging.INFO):
    chosen = memory.choose(given, small.train.training, 64, mesh, steps)
  assert chosen == given and not steps.tried and not caplog.messages


def test_what_cannot_fit_is_not_compiled(small, mesh, monkeypatch):
  model, steps = dataclasses.replace(small.model, **FREE), Steps()
  training = dataclasses.replace(small.train.training, batch_size=2**21)
  minimal = dataclasses.replace(model, remat='minimal')
  least = memory._least_bytes(minimal, training, 64, mesh)
  assert least > 5 * 10**9
  monkeypatch.setattr(device_memory, '_own_limit', lambda mesh: least - 1)
  chosen = memory.choose(model, training, 64, mesh, steps)
  assert chosen.remat == 'save_qkv_proj' and steps.tried == [chosen.remat]


def test_a_gpu_unrolls_all_layers(small):
  device = types.SimpleNamespace(platform='gpu')
  on = types.SimpleNamespace(devices=np.array([device]))
  deep = dataclasses.replace(small.model, **FREE, num_layers=24)
  *unrolled, last = memory._candidates(deep, deep, on)
  assert [model.scan_unroll for model in unrolled] == [24] * len(REMAT)
  assert (last.remat, last.scan_unroll) == ('full', 1)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_least_is_less_than_a_step_takes(small, mesh, remat):
  model = dataclasses.replace(small.model, remat=remat)
  training = dataclasses.replace(small.train.training, batch_size=64)
  step = state_lib.compile_program(model, training, 64, mesh).step
  need = step.memory_analysis()
  least = memory._least_bytes(model, training, 64, mesh)
  takes = need.argument_size_in_bytes + need.temp_size_in_bytes
  assert takes / 16 < least < takes
