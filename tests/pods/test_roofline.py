"""The estimate of a step's time: its parts, by hand and by proportion."""

import dataclasses
import types

import pytest

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.config.scoring import ScoringConfig
from infoprune_jax.config.training import TrainingConfig
from infoprune_jax.model import chips, flops
from infoprune_jax.pods import roofline
from infoprune_jax.pods.hlo import Traffic
from infoprune_jax.pods.programs import Needs, Program
from infoprune_jax.score.references import PlannedModel

MODEL = ModelConfig(
  num_layers=3,
  embed_dim=256,
  mlp_dim=512,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  dtype='bfloat16',
)
VOCAB = 1024
CHIP = chips.CHIPS['v5e']


def mesh(**shape: int) -> types.SimpleNamespace:
  shape = {**dict.fromkeys(('data', 'fsdp', 'sequence', 'tensor'), 1), **shape}
  axes = {
    'batch': shape['data'] * shape['fsdp'],
    'embed': shape['fsdp'],
    'length': shape['sequence'],
    'mlp': shape['tensor'],
  }
  count = axes['batch'] * axes['length'] * axes['mlp']
  return types.SimpleNamespace(
    shape=shape,
    num_shards=axes.__getitem__,
    devices=types.SimpleNamespace(size=count),
  )


def step(batch_size=8, model=MODEL, **shape: int) -> Program:
  training = TrainingConfig(
    num_steps=1,
    batch_size=batch_size,
    sequence_length=512,
    learning_rate=1e-3,
  )
  planned = PlannedModel(model, VOCAB)
  return Program('step', planned, mesh(**shape), 'train.training', training)


def scoring(sequences=8, **shape: int) -> Program:
  config = ScoringConfig(
    per_device_batch_size=sequences,
    sequence_length=512,
    window_overlap=0,
    dtype='bfloat16',
  )
  planned = PlannedModel(MODEL, VOCAB)
  return Program('scoring', planned, mesh(**shape), 'score', config)


def needs(remat='none', collectives=None) -> Needs:
  return Needs(0, 0, 0, 0, 0, 0, collectives, 0, remat)


def test_the_products_are_those_of_the_formula():
  layers = sum(2 * r * c for r, c in roofline.products(MODEL).values())
  head = 2 * MODEL.embed_dim * VOCAB
  # Without sequences there is no attention between tokens.
  by_formula = flops.forward_flops_per_token(MODEL, VOCAB, 1)
  attention = by_formula - MODEL.num_layers * layers - head
  assert attention == pytest.approx(2 * 2 * 4 * 64 * 3 * 0.5)


def test_a_scoring_step_computes_at_best_what_the_formula_says():
  program = scoring()
  estimate = roofline.estimate(CHIP, program, needs(collectives={}))
  assert estimate.compute == program.flops / 197e12
  assert estimate.links == 0.0


def test_memory_is_read_and_written_as_by_hand():
  tokens = 8 * 512
  of_layer = sum(
    2 * (rows * columns + tokens * (rows + columns))
    for rows, columns in ((256, 512), (256, 256), (256, 1024), (512, 256))
  )
  head = 2 * (256 * 1024 + tokens * 256) + 4 * tokens * 1024
  estimate = roofline.estimate(CHIP, scoring(), needs(collectives={}))
  assert estimate.memory == pytest.approx((3 * of_layer + head) / 819e9)


def test_what_is_not_kept_is_computed_again():
  times = [
    roofline.estimate(CHIP, step(), needs(remat)).compute
    for remat in ('none', 'minimal', 'save_qkv_proj', 'full')
  ]
  assert times == sorted(set(times))
  ideal = step().flops / 197e12
  assert ideal < times[0] < 1.1 * ideal
  assert 1.2 * ideal < times[-1] < 1.5 * ideal


def test_collectives_of_the_program_take_the_links_one_way():
  printed = {
    'all-gather': Traffic(3, 4 * 10**9),
    'all-reduce': Traffic(1, 3 * 10**9),
  }
  estimate = roofline.estimate(CHIP, step(), needs(collectives=printed))
  assert estimate.links == (4e9 + 2 * 3e9) / 200e9
  assert not estimate.links_are_formula
  assert estimate.bound == 'links' and estimate.step == estimate.links
  assert estimate.mfu == pytest.approx(step().flops / 197e12 / estimate.links)


def test_collectives_that_are_not_printed_come_from_a_formula():
  alone = roofline.estimate(CHIP, step(), needs())
  assert alone.links_are_formula and alone.links == 0.0
  held = 2 * (flops.num_params(MODEL, VOCAB) - 256 * 7 - 0)
  sharded = roofline.estimate(CHIP, step(fsdp=4), needs())
  assert sharded.links == pytest.approx(4 * held / 200e9, rel=0.01)
  copies = roofline.estimate(CHIP, step(data=4), needs())
  assert copies.links == pytest.approx(2 * held / 200e9, rel=0.01)
  assert roofline.estimate(CHIP, scoring(data=4), needs()).links == 0.0
  for axis in ('tensor', 'sequence'):
    assert roofline.estimate(CHIP, step(**{axis: 2}), needs()).links > 0.0


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'sequence', 'tensor'])
def test_a_step_on_twice_the_chips_takes_half_the_compute(axis):
  one = roofline.estimate(CHIP, step(), needs()).compute
  two = roofline.estimate(CHIP, step(**{axis: 2}), needs()).compute
  assert two == pytest.approx(one / 2)


def test_a_chip_of_twice_the_speed_takes_half_the_time():
  fast = dataclasses.replace(
    CHIP, **{n: 2 * v for n, v in vars(CHIP).items() if 'per_second' in n}
  )
  slow, quick = (
    roofline.estimate(chip, step(fsdp=2), needs()) for chip in (CHIP, fast)
  )
  assert quick.step == pytest.approx(slow.step / 2)
  assert quick.mfu == pytest.approx(slow.mfu)
