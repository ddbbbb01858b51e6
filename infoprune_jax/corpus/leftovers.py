"""What other programs leave beside the files of a dataset in a folder.

Markers, checksums and logs of Spark and Delta, cards and licences of the
Hugging Face Hub. A file of which nothing is known is read, and refused if it
is of another format: it may be data that would be missed.
"""

import posixpath

# Of tables and text beside them, where files of the format are looked for.
_NO_ROWS = [
  '.crc',
  '.md',
  '.rst',
  '.html',
  '.htm',
  '.yaml',
  '.yml',
  '.toml',
  '.cfg',
  '.ini',
  '.lock',
  '.log',
  '.pdf',
  '.png',
  '.jpg',
  '.svg',
  '.py',
  '.ipynb',
  '.sh',
  '.sha256',
  '.md5',
  '.bib',
  '.gitattributes',
  '.gitignore',
]
_OTHER_EXTENSIONS = {
  'jsonl': frozenset(_NO_ROWS),
  'parquet': frozenset(
    [*_NO_ROWS, '.json', '.jsonl', '.txt', '.csv', '.tsv', '.xml']
  ),
}
_OWN_EXTENSIONS = {
  'jsonl': ('.jsonl', '.json', '.ndjson'),
  'parquet': ('.parquet', '.parq', '.pq'),
}
_NAMES = frozenset(
  [
    'readme',
    'license',
    'licence',
    'notice',
    'citation',
    'changelog',
    'authors',
    'dataset_info.json',
    'dataset_infos.json',
    'dataset_dict.json',
    'state.json',
    'manifest.json',
    'sha256sums',
    'md5sums',
  ]
)


def is_data(kind: str, name: str) -> bool:
  """Whether a file in a folder may hold records.

  Args:
    kind: The format of the source.
    name: Relative to the folder.

  >>> [is_data('parquet', name) for name in ('a/0.parquet', 'a/_SUCCESS')]
  [True, False]
  """
  if kind not in _OTHER_EXTENSIONS:
    return True  # Any file may be a text.
  *folders, base = name.split('/')
  # As Spark does, which writes what is not finished into such folders.
  if any(f.startswith('_') and '=' not in f for f in folders):
    return False
  stem, extension = posixpath.splitext(base.lower())
  if base.lower() in _NAMES or (stem in _NAMES and extension == '.txt'):
    return False
  if base.startswith('_'):
    return any(own in base.lower() for own in _OWN_EXTENSIONS[kind])
  return extension not in _OTHER_EXTENSIONS[kind]
