"""Collectives of printed programs, made up here."""

import textwrap
import types

import jax
import jax.numpy as jnp
import pytest

from infoprune_jax.pods.hlo import Collective, Module, Traffic, printed

LOOP = 'backend_config={"known_trip_count":{"n":"24"},"flags":[]}'


def program(main: str, **others: str) -> str:
  """The text of a module with these computations."""
  texts = ['HloModule jit_step, is_scheduled=true\n']
  for name, body in {**others, 'main': main}.items():
    entry = 'ENTRY ' if name == 'main' else ''
    lines = textwrap.indent(textwrap.dedent(body).strip(), '  ')
    texts.append(f'{entry}%{name} (p: f32[8]) -> f32[8] {{\n{lines}\n}}\n')
  return '\n'.join(texts)


def test_a_loop_counts_for_each_round():
  text = program(
    f"""
    %w = (f32[8]{{0:T(256)}}, s32[]) while(%t), condition=%c, body=%layers, {LOOP}
    %a = f32[4,2]{{1,0:T(8,128)S(1)}} all-reduce(%x), to_apply=%add
    """,
    layers="""
    %g = (bf16[10]{0}, bf16[40]{0:T(8,128)(2,1)S(1)}) all-gather-start(%p)
    ROOT %d = bf16[40]{0} all-gather-done(%g)
    """,
  )
  assert Module(text).collectives() == {
    'all-gather': Traffic(24, 24 * 80),
    'all-reduce': Traffic(1, 32),
  }


def test_each_collective_has_its_place():
  text = program(
    f"""
    %w = (f32[8]{{0:T(256)}}, s32[]) while(%t), condition=%c, body=%layers, {LOOP}
    %a = (f32[4,2]{{1,0:T(8,128)S(1)}}, f32[]) all-reduce(%x, %y), to_apply=%add
    """,
    layers='%f = bf16[40]{0} fusion(%p), kind=kCustom, calls=%fused',
    fused="""
    %g = (bf16[10]{0}, bf16[40]{0:T(8,128)(2,1)S(1)}) all-gather-start(%p), metadata={op_name="jit(f)/while/body/mul" source_line=3}
    ROOT %d = bf16[40]{0} all-gather-done(%g)
    """,
  )
  of_layers, after = sorted(
    Module(text).each_collective(), key=lambda one: one.kind
  )
  assert of_layers == Collective(
    'all-gather', 'bf16[40]', 80, 24, True, 'jit(f)/while/body/mul'
  )
  assert after == Collective('all-reduce', 'f32[4,2] f32[]', 36, 1, False, '')


def test_loops_within_loops_multiply():
  text = program(
    f'%w = (f32[8], s32[]) while(%t), condition=%c, body=%outer, {LOOP}',
    outer='%v = (f32[8], s32[]) while(%t), condition=%c, body=%inner, '
    'backend_config={"known_trip_count":{"n":"3"}}',
    inner='ROOT %p = bf16[2,3] collective-permute(%x)',
  )
  assert Module(text).collectives() == {
    'collective-permute': Traffic(72, 72 * 12)
  }


def counted_loop(start: str, step: str, end: str, direction='LT') -> str:
  """A loop over an element of its tuple, as a TPU prints it."""
  return program(
    f"""
    %zero = s32[]{{:T(128)}} constant({start})
    %copy.1 = s32[]{{:T(128)}} copy(%zero)
    %t = (f32[8], s32[]) tuple(%p, %copy.1)
    %w = (f32[8], s32[]) while(%t), condition=%until, body=%layers
    """,
    layers=f"""
    %b = (f32[8], s32[]) parameter(0)
    %i = s32[] get-tuple-element(%b), index=1
    %step = s32[] constant({step})
    %next = s32[] add(%i, %step)
    %r = f32[8] all-reduce(%x), to_apply=%add
    ROOT %tuple = (f32[8], s32[]) tuple(%r, %next)
    """,
    until=f"""
    %b = (f32[8], s32[]) parameter(0)
    %i = s32[] get-tuple-element(%b), index=1
    %end = s32[] constant({end})
    ROOT %lt = pred[] compare(%i, %end), direction={direction}
    """,
  )


@pytest.mark.parametrize(
  'start, step, end, trips', [(0, 1, 24, 24), (0, 2, 8, 4), (1, 2, 8, 4)]
)
def test_trips_that_are_not_told_are_counted(start, step, end, trips):
  module = Module(counted_loop(str(start), str(step), str(end)))
  assert module.collectives() == {'all-reduce': Traffic(trips, trips * 32)}
  assert module.num_unknown_loops == 0


def test_a_loop_without_a_known_end_counts_once_and_is_told():
  module = Module(counted_loop('0', '1', '24', direction='NE'))
  assert module.collectives() == {'all-reduce': Traffic(1, 32)}
  assert module.num_unknown_loops == 1


def test_a_computation_runs_as_often_as_all_of_its_callers():
  text = program(
    f"""
    %w = (f32[8], s32[]) while(%t), condition=%c, body=%layers, {LOOP}
    %f = f32[8] fusion(%x), kind=kCustom, calls=%shared
    ROOT %g = f32[8] fusion(%f), kind=kCustom, calls=%shared
    """,
    layers='ROOT %f = f32[8] fusion(%x), kind=kCustom, calls=%shared',
    shared='ROOT %r = f32[8] all-reduce(%x), to_apply=%add',
  )
  assert Module(text).collectives() == {'all-reduce': Traffic(26, 26 * 32)}


def test_all_arrays_of_a_combined_collective_count():
  text = program(
    """
    %r = (f32[8]{0}, f32[4]{0}, /*index=2*/bf16[2]{0}) all-reduce(%a, %b, %c)
    %s = (f32[8]{0}, f32[4]{0}) all-reduce-start(%a, %b), to_apply=%add
    %g = ((bf16[2]{0}, f32[1]{0}), (bf16[16]{0}, f32[8]{0})) all-gather-start(%a)
    %p = (bf16[6]{0}, bf16[6]{0}, u32[]{:S(2)}, u32[]) collective-permute-start(%b)
    %t = (u8[3]{0}, u8[3]{0}) all-to-all(%b, %c)
    """
  )
  assert Module(text).collectives() == {
    'all-gather': Traffic(1, 32 + 32),
    'all-reduce': Traffic(2, (32 + 16 + 4) + (32 + 16)),
    'all-to-all': Traffic(1, 6),
    'collective-permute': Traffic(1, 12),
  }


def test_what_an_async_start_runs_is_not_counted_again_at_its_end():
  text = program(
    """
    %s = ((f32[2]), f32[8], u32[]) async-start(%x), calls=%gather
    %u = ((f32[2]), f32[8], u32[]) async-update(%s), calls=%gather
    ROOT %d = f32[8] async-done(%u), calls=%gather
    """,
    gather='ROOT %g = f32[8] all-gather(%x), dimensions={0}',
  )
  assert Module(text).collectives() == {'all-gather': Traffic(1, 32)}


def test_a_reduce_scatter_counts_what_it_takes():
  text = program(
    """
    %a = bf16[64]{0} convert(%p)
    %s = bf16[4]{0} reduce-scatter(%a), dimensions={0}, to_apply=%add
    %f = f32[1]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3
    """,
    **{'all-reduce-scatter.3': '%r = f32[16]{0} all-reduce(%x), to_apply=%add'},
  )
  assert Module(text).collectives() == {'reduce-scatter': Traffic(2, 128 + 64)}


def test_the_pieces_of_a_collective_in_several_fusions_count_once():
  gather = '%g = f32[8] all-gather(%x), channel_id={}, dimensions={{0}}'
  text = program(
    """
    %s = (f32[8], u32[]) fusion(%x), kind=kCustom, calls=%start
    %m = (f32[8], u32[]) fusion(%s), kind=kCustom, calls=%step
    ROOT %d = f32[8] fusion(%m), kind=kCustom, calls=%done
    %o = f32[8] fusion(%d), kind=kCustom, calls=%other
    %g = f32[8] all-gather(%x), channel_id=3, dimensions={0}
    """,
    start=gather.format(3),
    step=gather.format(3),
    done=gather.format(3),
    other=gather.format(4),
  )
  assert Module(text).collectives() == {'all-gather': Traffic(3, 3 * 32)}


def test_every_branch_of_a_conditional_counts():
  text = program(
    '%c = f32[8] conditional(%i, %a, %b), branch_computations={%one, %two}',
    one='ROOT %r = f32[8] all-reduce(%x), to_apply=%add',
    two='ROOT %r = f32[2] all-reduce(%x), to_apply=%add',
  )
  assert Module(text).collectives() == {'all-reduce': Traffic(2, 40)}


def test_a_program_without_collectives_has_none():
  module = Module(program('ROOT %a = f32[8] add(%x, %y)'))
  assert module.collectives() == {}


@pytest.mark.skipif(jax.device_count() < 2, reason='one device')
def test_a_compiled_program_is_read():
  """Of CPUs, whose compiler prints as a TPU's does."""

  def step(x):
    def add(total, _):
      return jax.lax.psum(total, 'x'), None

    return jax.lax.scan(add, x, None, length=5)[0]

  program = jax.pmap(step, axis_name='x').lower(jnp.zeros((2, 3, 2)))
  module = Module(program.compile().as_text())
  assert module.collectives() == {'all-reduce': Traffic(5, 5 * 24)}
  assert module.num_unknown_loops == 0


def failing(words: str) -> types.SimpleNamespace:
  def as_text():
    raise jax.errors.JaxRuntimeError(words)

  return types.SimpleNamespace(as_text=as_text)


def test_a_program_that_libtpu_does_not_print_has_no_text():
  told = 'INTERNAL: async-update instruction should have 1 operands but sees 3'
  assert printed(failing(told)) is None
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL: broken'):
    printed(failing('INTERNAL: broken'))
