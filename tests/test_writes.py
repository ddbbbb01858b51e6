"""Where files are touched: in the modules that know object stores, alone."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

import infoprune_jax

ROOT = pathlib.Path(infoprune_jax.__file__).parent
FILE_MODULES = tuple(
  f'runtime/{name}.py'
  for name in (
    *('files', 'filesystems', 'append_log'),
    *('local_files', 'local_cache', 'object_stores'),
  )
)
OTHERS = sorted(
  path
  for path in ROOT.rglob('*.py')
  if str(path.relative_to(ROOT)) not in FILE_MODULES
)
MODULES = ('io.open', 'mmap', 'pathlib', 'shutil', 'tempfile')
OS_CALLS = {
  f'os.{name}'
  for name in (
    *('access', 'chmod', 'fsync', 'link', 'listdir', 'lstat', 'makedirs'),
    *('mkdir', 'open', 'remove', 'removedirs', 'rename', 'renames', 'replace'),
    *('rmdir', 'scandir', 'stat', 'symlink', 'truncate', 'unlink', 'walk'),
    *('path.exists', 'path.getmtime', 'path.getsize', 'path.isdir'),
    *('path.isfile', 'path.islink', 'path.lexists'),
  )
} | {'glob.glob', 'glob.iglob'}
METHODS = ('hardlink_to', 'mkdir', 'symlink_to', 'touch', 'unlink')
# What libraries write, and which argument says where to.
WRITERS = {
  'CompressedOutputStream': 0,
  'ParquetWriter': 0,
  'np.save': 0,
  'np.savetxt': 0,
  'np.savez': 0,
  'np.savez_compressed': 0,
  'pickle.dump': 1,
  'json.dump': 1,
  'pq.write_table': 1,
  'savefig': 0,
}
FILES = ('file', 'buffer', 'stream')  # What an open one is called.
# Those that take nothing but a path.
BY_PATH = (
  *('ArrayRecordWriter', 'EventFileWriter', 'FileWriter', 'OSFile'),
  *(
    'RecordWriter',
    'SummaryWriter',
    'memmap',
    'open_memmap',
    'TFRecordWriter',
    'save_file',
  ),
  *('save_model', 'save_pretrained', 'start_trace', 'to_csv', 'to_json'),
  *('to_parquet', 'tofile', 'write_bytes', 'write_csv', 'write_dataset'),
  *(
    'write_feather',
    'write_parquet',
    'write_text',
    'write_to_dataset',
    'write_to_directory',
  ),
)
SQL = re.compile(r'\bCOPY\b.*\bTO\b|\bEXPORT DATABASE\b|\bATTACH\b', re.S)
# By module, what it may do nevertheless.
ALLOWED = {
  # The flag --config: code of this machine.
  'config/config_flag.py': {
    'os.path.exists',
    'os.path.isdir',
    'os.path.isfile',
  },
  # The kernel's limit on memory.
  'runtime/processes.py': {'os.path.exists'},
  # Output that is thrown away.
  'corpus/quiet_tensorflow.py': {'open(os.devnull)'},
  # Into a `files.scratch_folder`, from where files are copied.
  'export/tfds_writer.py': {'TFRecordWriter', 'write_to_directory'},
  'export/records.py': {'ArrayRecordWriter'},
  'train/hooks.py': {'start_trace'},
  # An array of one process, in a file without a name.
  'selection/arrays.py': {'mmap', 'tempfile'},
  # Orbax knows folders and gs:// itself.
  'model/checkpoints.py': {'CheckpointManager'},
}


def name_of(path: pathlib.Path) -> str:
  return str(path.relative_to(ROOT))


def touches(tree: ast.AST) -> Iterator[str]:
  """What a module does to files, by name."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
      yield from (name for name in names if name in MODULES)
    elif isinstance(node, ast.ImportFrom):
      names = [node.module, *(f'{node.module}.{a.name}' for a in node.names)]
      yield from (name for name in names if name in (*MODULES, *OS_CALLS))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      if SQL.search(node.value):
        yield 'SQL'
    elif isinstance(node, ast.Call):
      yield from _by_call(node)


def _by_call(node: ast.Call) -> Iterator[str]:
  called = ast.unparse(node.func)
  last = called.rpartition('.')[2]
  arguments = [ast.unparse(argument) for argument in node.args]
  if called in ('open', 'io.open', 'builtins.open'):
    yield f'open({arguments[0]})'
  elif called in OS_CALLS or last == 'CheckpointManager':
    yield called if called in OS_CALLS else last
  elif last in METHODS:
    yield called
  elif last in BY_PATH and called not in (
    *('files.write_text', 'records.write_text'),
  ):
    yield last
  place = WRITERS.get(called, WRITERS.get(last))
  if place is not None and arguments[place : place + 1] not in (
    [name] for name in FILES
  ):
    yield f'{called}({", ".join(arguments)})'


@pytest.mark.parametrize('path', OTHERS, ids=name_of)
def test_files_are_touched_in_one_place(path):
  found = set(touches(ast.parse(path.read_text(), str(path))))
  assert found == ALLOWED.get(name_of(path), set())


@pytest.mark.parametrize(
  'code, found',
  [
    ("open('x', 'w')", "open('x')"),
    ('os.replace(a, b)', 'os.replace'),
    ('from os import replace', 'os.replace'),
    ('import shutil', 'shutil'),
    ('from pathlib import Path', 'pathlib'),
    ("path.write_text('x')", 'write_text'),
    ('path.mkdir()', 'path.mkdir'),
    ("connection.execute('COPY x TO y')", 'SQL'),
    ('pq.write_table(table, path)', 'pq.write_table(table, path)'),
    ("np.save(f'{x}.npy', array)", "np.save(f'{x}.npy', array)"),
    ('figure.savefig(path)', 'figure.savefig(path)'),
    ('tensorboardX.SummaryWriter(path)', 'SummaryWriter'),
    ('np.save(file, array)', None),
    ("files.write_text(path, 'x')", None),
  ],
)
def test_what_counts_as_touching(code, found):
  assert list(touches(ast.parse(code))) == [found] * (found is not None)
