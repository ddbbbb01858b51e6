"""Reads and writes objects of a store whose answers may be short, late or lost.

Clients repeat what the store refuses (429, 500 to 504) and connections that
break. They do not notice an answer that is shorter than the object, so lengths
and checksums are compared here. Listings decide nothing here.

On gs:// an object is written on the condition that it is the generation that
was there before the writer was last allowed to write.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable
from typing import Any

_TRIES = 4  # of reads that are short, and of writes that another one precedes
BLOCK = 4 << 20  # bytes to read ahead
_CHUNK = 32 << 20  # bytes of an upload; a multiple of 256 KiB


def read_whole(filesystem: Any, name: str) -> bytes:
  """The content of an object.

  Raises:
    FileNotFoundError: there is no such object.
    OSError: it was short each time.
  """
  for _ in range(_TRIES):
    info = _info(filesystem, name)
    data = filesystem.cat_file(name)
    if len(data) == info['size'] and _matches(info, io.BytesIO(data)):
      return data
  raise _short(name)


def download(filesystem: Any, name: str, target: str) -> None:
  """Writes the content of an object to a local file.

  Raises:
    FileNotFoundError: there is no such object.
    OSError: it was short each time.
  """
  for _ in range(_TRIES):
    info = _info(filesystem, name)
    filesystem.get_file(name, target)
    with open(target, 'rb') as file:
      if file.seek(0, io.SEEK_END) == info['size'] and _matches(info, file):
        return
  raise _short(name)


def _info(filesystem: Any, name: str) -> dict[str, Any]:
  info = filesystem.info(name)
  if info['type'] == 'directory':
    raise FileNotFoundError(name)
  return info


def _short(name: str) -> OSError:
  return OSError(
    f'{name}: the store sent fewer or other bytes than the object has, '
    f'{_TRIES} times'
  )


def _matches(info: Any, file: Any) -> bool:
  """Whether content has the MD5 of an object; True if the store tells none."""
  told = info.get('md5Hash')
  file.seek(0)
  return not told or _md5(file) == told


def _md5(file: Any) -> str:
  digest = hashlib.file_digest(file, 'md5').digest()
  return base64.b64encode(digest).decode()


class Reader(io.RawIOBase):
  """Reads an object by ranges, each of which must have its length.

  The files of gcsfs wait without end after an answer that is too short.
  """

  def __init__(self, filesystem: Any, name: str):
    """Asks for the size.

    Raises:
      FileNotFoundError: there is no such object.
    """
    super().__init__()
    self._filesystem, self._name, self._place = filesystem, name, 0
    self._size = _info(filesystem, name)['size']

  def readable(self) -> bool:
    """Always."""
    return True

  def seekable(self) -> bool:
    """Always."""
    return True

  def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
    """Moves; returns the new place."""
    base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}
    self._place = max(base[whence] + offset, 0)
    return self._place

  def tell(self) -> int:
    """The place, in bytes."""
    return self._place

  def readall(self) -> bytes:
    """The rest, by one request."""
    return self._next(self._size)

  def readinto(self, buffer: Any) -> int:
    """Fills a buffer, or its start at the end; returns the size of this."""
    view = memoryview(buffer).cast('B')
    data = self._next(len(view))
    view[: len(data)] = data
    return len(data)

  def _next(self, length: int) -> bytes:
    begin, end = self._place, min(self._place + length, self._size)
    if begin >= end:
      return b''
    for _ in range(_TRIES):
      data = self._filesystem.cat_file(self._name, start=begin, end=end)
      if len(data) == end - begin:
        self._place = end
        return data
    raise _short(self._name)


def upload(
  filesystem: Any, name: str, file: Any, check: Callable[[], None]
) -> None:
  """Makes the content of a local file an object, whole or not at all.

  Args:
    filesystem: Of the store.
    name: Of the object.
    file: The content, a binary file with a name.
    check: Called right before the upload; if it raises, nothing changes. On
      gs:// the upload fails if the object has changed since before the call,
      and both are repeated.

  Raises:
    OSError: the store keeps other bytes than were sent, or others wrote it each
      time.
  """
  if 'gs' not in filesystem.protocol:
    check()
    filesystem.put_file(file.name, name)
    return
  file.seek(0)
  digest = _md5(file)
  for _ in range(_TRIES):
    before = _object(filesystem, name)
    check()
    try:
      made = _upload_if(filesystem, name, file, before.get('generation', '0'))
    except Exception as error:
      # Older versions of gcsfs have no FileExistsError for code 412.
      other = not isinstance(error, FileExistsError)
      if other and str(getattr(error, 'code', '')) != '412':
        raise
      # Others wrote it, or it is ours: the answer was lost, and the client asked
      # again.
      made = _object(filesystem, name)
      if made.get('md5Hash') != digest:
        continue
    size = file.seek(0, io.SEEK_END)
    if int(made['size']) == size and made.get('md5Hash', digest) == digest:
      return
    raise OSError(f'{name}: the store keeps other bytes than were sent')
  raise OSError(f'{name}: other processes wrote it {_TRIES} times meanwhile')


def _object(filesystem: Any, name: str) -> dict[str, Any]:
  """What the store knows of an object; {} if there is none."""
  bucket, _, key = name.partition('/')
  try:
    return json.loads(filesystem.call('GET', 'b/{}/o/{}', bucket, key)[1])
  except FileNotFoundError:
    return {}


def _upload_if(
  filesystem: Any, name: str, file: Any, generation: str
) -> dict[str, Any]:
  """Uploads in chunks; a chunk that fails is sent again by the client.

  Raises:
    FileExistsError: the object is not of this generation, '0' for none. Older
      versions of gcsfs raise an `HttpError` with the code 412.
  """
  bucket, _, key = name.partition('/')
  headers, _ = filesystem.call(
    'POST',
    filesystem.base.replace('/storage/v1/', '/upload/storage/v1/') + 'b/{}/o',
    bucket,
    uploadType='resumable',
    name=key,
    json={'name': key},
    ifGenerationMatch=generation,
  )
  size, begin = file.seek(0, io.SEEK_END), 0
  while True:
    file.seek(begin)
    chunk = file.read(_CHUNK)
    end = begin + len(chunk)
    place = f'{begin}-{end - 1}' if chunk else '*'
    told, body = filesystem.call(
      'PUT',
      headers['Location'],
      headers={'Content-Range': f'bytes {place}/{size}'},
      data=chunk,
    )
    if body:
      return json.loads(body)
    # The store may keep less than was sent.
    begin = int(told['Range'].rpartition('-')[2]) + 1 if 'Range' in told else 0
