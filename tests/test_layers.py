"""Who may import whom, and how large a file may grow."""

import ast
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

import infoprune_jax

ROOT = pathlib.Path(infoprune_jax.__file__).parent
FILES = sorted(ROOT.rglob('*.py'))
# The rooms, from the highest. High may import low, never the reverse.
# Neighbours may not import each other.
LAYERS = (
  ('main',),
  ('dry_run', 'pods'),
  ('stages',),
  ('stage',),
  ('planned_runs',),
  ('checks', 'costs', 'planned'),
  ('verify',),
  ('report',),
  ('train',),
  ('evaluate', 'export'),
  ('seqio_tasks',),
  ('selection',),
  ('score',),
  ('batches', 'statistics', 'model'),
  ('tokens',),
  ('corpus',),
  ('runtime',),
  ('config',),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WITHOUT_JAX = (
  *('config', 'runtime', 'corpus', 'tokens', 'statistics'),
  *('selection', 'export', 'report'),
)
# What decides who is who in a job.
WITH_JAX = 'runtime/distributed.py'
FSSPEC = ('runtime/filesystems.py', 'runtime/local_files.py')
TENSORFLOW = ('corpus', 'seqio_tasks', 'export')
LAZY = (
  'apache_beam',
  'array_record',
  'datasketch',
  'duckdb',
  'huggingface_hub',
  'jinja2',
  'matplotlib',
  'tensorstore',
)
MAX_FILE, MAX_FUNCTION = 400, 60  # lines


def unit_of(path: pathlib.Path) -> str:
  """The subpackage or the module at the top that a file belongs to."""
  return path.relative_to(ROOT).with_suffix('').parts[0]


def imports(tree: ast.AST) -> Iterator[str]:
  """Full names of what is imported; `from a import b` gives `a.b`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, 'imports are absolute'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def at_the_top(tree: ast.Module) -> ast.Module:
  """The tree without the bodies of functions."""

  class Cut(ast.NodeTransformer):
    def visit_FunctionDef(self, node):
      return None

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

  return Cut().visit(tree)


def parsed(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(), str(path))


def is_below(name: str, package: str) -> bool:
  return name == package or name.startswith(f'{package}.')


def name_of(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_high_imports_low(path):
  unit = unit_of(path)
  for name in imports(parsed(path)):
    if not is_below(name, 'infoprune_jax'):
      continue
    shards = name.split('.')
    other = shards[1] if len(shards) > 1 else '__init__'
    if other == unit or other.startswith('__'):
      continue
    assert RANK[unit] < RANK[other], f'{unit} imports {name}'


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_the_inside_of_jax_is_known_where_there_is_no_door(path):
  names = [n for n in imports(parsed(path)) if is_below(n, 'jax._src')]
  inside = {
    'runtime/distributed.py': ['jax._src.distributed'],
    'model/kernels/gpu_attention.py': [
      'jax._src.cudnn.fused_attention_stablehlo'
    ],
  }
  assert names == inside.get(name_of(path), [])


def test_every_unit_has_a_layer():
  units = {unit_of(path) for path in FILES} - {'__init__'}
  assert units == set(RANK)


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_heavy_packages_stay_where_they_are(path):
  for name in imports(parsed(path)):
    top = name.split('.')[0]
    if unit_of(path) in WITHOUT_JAX and name_of(path) != WITH_JAX:
      assert top not in ('jax', 'jaxlib', 'flax', 'optax', 'grain'), name
    if top in ('tensorflow', 'seqio', 'tensorflow_datasets'):
      assert unit_of(path) in TENSORFLOW, name
    if top == 'orbax':
      assert name_of(path) == 'model/checkpoints.py', name
    if top == 'fsspec':  # It takes '::' and '*' in local names for its own.
      assert name_of(path) in FSSPEC, name
  for name in imports(at_the_top(parsed(path))):
    assert name.split('.')[0] not in LAZY, f'{name} is imported where used'


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_two_modules_know_the_mesh(path):
  if name_of(path) in ('model/mesh.py', 'model/partitioning.py'):
    return
  tree = parsed(path)
  names = [name for name in imports(tree) if is_below(name, 'jax.sharding')]
  names += [
    ast.unparse(node)
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and is_below(ast.unparse(node), 'jax.sharding')
  ]
  assert not names


@pytest.mark.parametrize(
  'path',
  [*FILES, *sorted(ROOT.parent.glob('tools/*.py'))],
  ids=lambda p: p.name,
)
def test_files_and_functions_are_small(path):
  assert len(path.read_text().splitlines()) <= MAX_FILE
  for node in ast.walk(parsed(path)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = node.end_lineno - node.lineno + 1
      assert lines <= MAX_FUNCTION, f'{node.name} has {lines} lines'


@pytest.mark.parametrize(
  'path', sorted(ROOT.parent.glob('tests/**/*.py')), ids=lambda p: p.name
)
def test_files_of_tests_are_small(path):
  assert len(path.read_text().splitlines()) <= MAX_FILE


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_a_module_is_named_after_its_noun(path):
  shards = path.relative_to(ROOT).with_suffix('').parts
  banned = {'utils', 'util', 'common', 'helpers', 'helper', 'misc'}
  assert not banned.intersection(shards)


def loaded_by(module: str) -> set[str]:
  """The packages that an import of `module` loads, in a process of its own."""
  code = (
    f'import {module}, sys; print(*{{n.split(".")[0] for n in sys.modules}})'
  )
  paths = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  process = subprocess.run(
    [sys.executable, '-c', code],
    env=paths,
    check=True,
    capture_output=True,
    text=True,
  )
  return set(process.stdout.split())


@pytest.mark.parametrize(
  'module, absent',
  [
    ('infoprune_jax.selection.select', {'jax', 'duckdb', 'tensorflow'}),
    ('infoprune_jax.export.job', {'jax', 'duckdb', 'tensorflow'}),
    (
      'infoprune_jax.report.results.page',
      {'jax', 'matplotlib', 'jinja2', 'duckdb'},
    ),
    ('infoprune_jax.tokens.tokenize', {'jax', 'tensorflow', 'seqio', 'duckdb'}),
    ('infoprune_jax.main', {'jax', 'tensorflow', 'seqio', 'duckdb'}),
    (
      'infoprune_jax.stages',
      {'tensorflow', 'seqio', 'duckdb', 'matplotlib', 'jinja2'},
    ),
  ],
)
def test_an_import_loads_only_what_it_needs(module, absent):
  loaded = loaded_by(module)
  assert 'infoprune_jax' in loaded
  assert not loaded & absent
