"""tools/make_pod_table.py: what it reads off compiled programs."""

import importlib.util
import pathlib
import sys

PATH = pathlib.Path(__file__).parents[1] / 'tools/make_pod_table.py'
SPEC = importlib.util.spec_from_file_location('make_pod_table', PATH)
make_pod_table = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = make_pod_table
SPEC.loader.exec_module(make_pod_table)


def test_a_causal_mask_leaves_half_of_the_blocks():
  text = '\n'.join(
    [
      '     0   : { start }',
      '  0x16 LB: > { loop }',
      ' 0x100 PF: > { sums are set up }',
      ' 0x500 PF: > { a block is added }',
      ' 0x680 PF: > { sums are written }',
      ' 0x690 PF: > { next }',
      ' 0x6a0   : { end }',
    ]
  )
  kernel = make_pod_table.bundles(text)
  assert kernel == [0x20, 0x100 + 0x180, 0x400]
  assert make_pod_table.cycles(kernel, 1024, 1024) == 0x6A0
  by_hand = 16 * 0x20 + 4 * 0x280 + 10 * 0x400
  assert make_pod_table.cycles(kernel, 4096, 1024) == by_hand


def test_cells_have_names_of_their_own():
  names = [cell.name for cell in make_pod_table.cells()]
  assert len(set(names)) == len(names)
