"""Deletes folders so that a kill at any moment is told from damage.

The files of a folder go one by one, and an object store cannot rename it first.
So there is a mark beside it, from before the first file goes until the last one
is gone. What is marked is not read, and goes with the next start.
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
  """Notes that a folder is being deleted, before any of it goes."""
  files.write_text(f'{parent}/{_MARK}{name}', '')


def finish(parent: str, name: str) -> None:
  """Deletes what is left of a marked folder, and then its mark."""
  filesystem, mark_name = filesystems.filesystem_of(f'{parent}/{_MARK}{name}')
  filesystem.invalidate_cache()  # Orbax deletes by another way.
  filesystems.delete_folder(f'{parent}/{name}')
  filesystem.rm_file(mark_name)
