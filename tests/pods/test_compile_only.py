"""The job `--compile_only`: its programs, what it prints, and what it refuses."""

import dataclasses

import jax
import pytest

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.model import chips, mesh as mesh_lib
from infoprune_jax.pods import compile_only, libtpu, programs
from infoprune_jax.pods.hlo import Traffic
from infoprune_jax.pods.programs import Needs

CHIP = chips.CHIPS['v5e']


@pytest.fixture
def mesh():
  return mesh_lib.make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture
def spread():
  """Over two chips along `data` and two along `fsdp`."""
  return mesh_lib.make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])


def needing(total: int, **fields) -> Needs:
  defaults = dict(
    parameters=10**9,
    optimizer=2 * 10**9,
    batch=1000,
    temporaries=total - 3 * 10**9 - 1000,
    beside=0,
    total=total,
    collectives={'all-gather': Traffic(3, 5 * 10**9)},
    num_unknown_loops=0,
    remat='full',
  )
  return Needs(**{**defaults, **fields})


def test_the_programs_of_a_job_are_those_that_it_compiles(small, spread):
  step, evaluation = programs.of_job(small, 'train', spread)
  assert step.is_training and not evaluation.is_training
  training = small.train.training
  assert step.tokens == training.tokens_per_step
  assert step.sequences == training.batch_size // 4
  assert step.batch_option == f'train.training.batch_size={training.batch_size}'
  # Evaluation runs while parameters and two moments are held.
  assert evaluation.beside == pytest.approx(
    3 * step.parameter_bytes(), rel=0.01
  )
  [scoring] = programs.of_job(small, 'score', spread)
  assert scoring.config == small.score and scoring.beside == 0
  [alone] = programs.of_job(small, 'evaluate', spread)
  assert alone.beside == step.parameter_bytes()


def test_models_that_score_together_are_held_together(small, spread):
  models = dict(early=dataclasses.replace(small.reference.checkpoint, step=1))
  section = dataclasses.replace(small.reference, extra_models=models)
  config = dataclasses.replace(small, reference=section)
  [scoring] = programs.of_job(config, 'score', spread)  # Both have one shape.
  assert scoring.beside == scoring.parameter_bytes() > 0


def test_another_batch_is_that_many_sequences_on_each_chip(small, spread):
  step, evaluation = programs.of_job(small, 'train', spread)
  assert step.with_sequences(3).config.batch_size == 12
  assert step.with_sequences(3).sequences == 3
  assert evaluation.with_sequences(5).sequences == 5
  training = dataclasses.replace(
    step.config, batch_size=16, gradient_accumulation_steps=2
  )
  two = dataclasses.replace(step, config=training)
  assert two.sequences == 2 and two.tokens == training.tokens_per_step
  assert two.with_sequences(3).config.batch_size == 24


def test_what_memory_decides_takes_least_in_another_batch(small, spread):
  model = dataclasses.replace(small.model, remat='auto', scan_unroll=0)
  config = dataclasses.replace(small, model=model)
  step, _ = programs.of_job(config, 'train', spread)
  smallest = step.with_sequences(2).planned.model
  assert (smallest.remat, smallest.scan_unroll) == ('full', 1)


def test_a_compiled_program_tells_what_it_needs(small, spread):
  [scoring] = programs.of_job(small, 'score', spread)
  needs = scoring.compile()
  assert needs.parameters == scoring.parameter_bytes()
  # Three arrays of int32, and one of float32.
  length = small.score.sequence_length
  assert needs.batch % (scoring.sequences * length) == 0 and needs.batch > 0
  assert needs.collectives and needs.num_unknown_loops == 0
  assert needs.total >= needs.parameters + needs.batch + needs.temporaries


def stepwise(mesh, sequences=8, most=20):
  """A program of 1 GB for each sequence beside 3 GB, and what was compiled."""
  tried = []

  @dataclasses.dataclass(frozen=True)
  class Fake:
    sequences: int
    name: str = 'step'

    @property
    def batch_option(self):
      return f'batch={self.sequences}'

    def with_sequences(self, number):
      return Fake(number)

    def compile(self):
      tried.append(self.sequences)
      if self.sequences > most:
        raise jax.errors.JaxRuntimeError(
          'RESOURCE_EXHAUSTED: E1000: Ran out of memory on HBM, the total '
          'memory required for HLO temporaries (512.00G) exceeds available HBM '
          '(15.75G). HLO module: jit_step.\nSee more.'
        )
      return needing((3 + self.sequences) * 10**9)

  return Fake(sequences), tried


@pytest.mark.parametrize('sequences', [1, 8, 13, 14, 40, 200])
def test_the_largest_batch_is_where_memory_ends(mesh, sequences):
  """16.9 GB hold 13 sequences."""
  program, tried = stepwise(mesh, sequences)
  needs = compile_only.compiled(program)
  assert compile_only.largest_batch(CHIP, program, needs) == (13, 1)
  assert len(tried) < 10


def test_a_compiler_that_lacks_memory_is_quoted(mesh):
  program, _ = stepwise(mesh, sequences=30)
  told = compile_only.compiled(program)
  assert told.startswith('Ran out of memory on HBM, the total memory required')
  assert '512.00G' in told and '15.75G' in told and '\n' not in told


def test_not_even_one_sequence_may_fit(mesh):
  program, _ = stepwise(mesh, sequences=4, most=0)
  needs = compile_only.compiled(program)
  assert compile_only.largest_batch(CHIP, program, needs) == (0, 1)


def test_lines_name_every_part_of_the_memory(small, mesh):
  step, _ = programs.of_job(small, 'train', mesh)
  text = '\n'.join(compile_only.lines(CHIP, step, needing(20 * 10**9)))
  assert '20 GB of 16.9 GB per chip, does not fit: parameters 1 GB' in text
  assert 'optimizer 2 GB' in text and 'temporaries 17 GB' in text
  assert '3 all-gather of 5 GB' in text and 'MFU' in text
  unprinted = needing(10**10, collectives=None)
  text = '\n'.join(compile_only.lines(CHIP, step, unprinted))
  assert 'libtpu does not print this program' in text and 'by formula' in text
  looping = needing(10**10, num_unknown_loops=2)
  text = '\n'.join(compile_only.lines(CHIP, step, looping))
  assert '2 loops of unknown length counted once' in text


def test_without_libtpu_the_command_to_install_it_is_told(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'infoprune_jax\[tpu-comp"):
    libtpu.prepare()


@pytest.fixture
def run_train(small, mesh, monkeypatch):
  """Runs `train` for one chip, on which each sequence takes so many bytes."""

  def run(per_sequence):
    monkeypatch.setattr(compile_only, 'make_mesh', lambda *_: mesh)
    monkeypatch.setattr(
      programs.Program,
      'compile',
      lambda self: needing(3 * 10**9 + self.sequences * per_sequence),
    )
    compile_only.run(small, 'train', 'v5e:1x1', 1)

  return run


def test_a_job_that_fits_tells_its_programs_and_the_largest_batch(
  run_train, capsys
):
  run_train(10**9)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].startswith('train on v5e:1x1: 1 chip, mesh')
  told = [line for line in lines if 'per chip at once' in line]
  assert [line.partition(':')[0] for line in told] == [
    'training step',
    'evaluation',
  ]
  [largest] = [line for line in lines if 'the largest batch that fits' in line]
  assert largest.split()[0] == 'train.training.batch_size=13'


def test_a_job_that_does_not_fit_ends_with_the_batch_that_does(run_train):
  with pytest.raises(
    UserError,
    match=r'train does not fit v5e:1x1: training step '
    r'\(train.training.batch_size=4 is the largest batch that fits, with '
    r"model.remat='full'\)\. Change the batch",
  ):
    run_train(3 * 10**9)


def test_a_topology_that_is_not_there_is_refused_first(small):
  with pytest.raises(UserError, match='v5e:3x5: there is no such slice'):
    compile_only.run(small, 'train', 'v5e:3x5', 1)
