"""Deletes folders so that an interrupted deletion does not look like damage.

The files of a folder are deleted one by one, and an object store cannot rename
the folder first. So a mark is beside it, from before the first file is deleted
until the last one is gone. Marked folders are not read, and the next start
deletes them.
"""

from infoprune_jax.runtime import files, filesystems

_MARK = 'deleting-'


def marked(parent: str) -> list[str]:
  """The names of the folders in `parent` that are being deleted."""
  return [
    name.removeprefix(_MARK)
    for name in filesystems.names_in(parent)
    if name.startswith(_MARK)
  ]


def mark(parent: str, name: str) -> None:
  """Marks a folder before any of its files is deleted."""
  files.write_text(f'{parent}/{_MARK}{name}', '')


def finish(parent: str, name: str) -> None:
  """Deletes the rest of a marked folder, and then its mark."""
  filesystems.delete_folder(f'{parent}/{name}')
  files.remove(f'{parent}/{_MARK}{name}')
