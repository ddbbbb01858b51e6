"""Files of text as they are stored: compressed, padded, or named wrongly.

The name of a file decides its codec. The first bytes must agree: a file that is
read by the wrong codec would only look like bad text.
"""

import bz2
import codecs
import contextlib
import io
import lzma
import posixpath
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from infoprune_jax.config.validation import UserError
from infoprune_jax.corpus import paths, records

CODECS = {
  '.gz': 'gzip',
  '.zst': 'zstd',
  '.zstd': 'zstd',
  '.bz2': 'bz2',
  '.xz': 'xz',
}
# How files begin. zstd files may begin with a frame that readers skip.
_SKIPPABLE = tuple(bytes((n, 0x2A, 0x4D, 0x18)) for n in range(0x50, 0x60))
_MAGIC = {
  'gzip': (b'\x1f\x8b',),
  'zstd': (b'\x28\xb5\x2f\xfd', *_SKIPPABLE),
  'bz2': tuple(
    b'BZh%d' % level + block
    for level in range(1, 10)
    for block in (b'1AY&SY', b'\x17rE8P\x90')  # a first block, or no block
  ),
  'xz': (b'\xfd7zXZ\0',),
}
_OTHERS = {
  'a zip archive': (b'PK\x03\x04', b'PK\x05\x06'),
  'a 7z archive': (b'7z\xbc\xaf\x27\x1c',),
  'a rar archive': (b'Rar!\x1a\x07',),
  'compressed by lz4': (b'\x04\x22\x4d\x18',),
  'compressed by snappy': (b'\xff\x06\x00\x00sNaPpY',),
  'a Parquet file': (b'PAR1',),
  'an Arrow file': (b'ARROW1',),
}
_TAR, _TAR_MARK = 'a tar archive', slice(257, 262)
# Longer marks come first: that of UTF-32 begins with that of UTF-16.
_FOREIGN_MARKS = {
  codecs.BOM_UTF32_LE: 'UTF-32',
  codecs.BOM_UTF32_BE: 'UTF-32',
  codecs.BOM_UTF16_LE: 'UTF-16',
  codecs.BOM_UTF16_BE: 'UTF-16',
}
_HEAD, _CHUNK, _BUFFER = 512, 1 << 16, 1 << 20
_FRAME_HEAD = 18  # bytes of the longest header of a zstd frame
_RLE_BLOCK = 1  # a block of one byte, repeated
_MAX_WINDOW = 1 << 31  # bytes; what `zstd --long=31` needs
_DECODERS: dict[str, Callable[[], Any]] = {
  'gzip': lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
  'zstd': lambda: zstandard.ZstdDecompressor(
    max_window_size=_MAX_WINDOW
  ).decompressobj(),
  'bz2': bz2.BZ2Decompressor,
  'xz': lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}
_DECODE_ERRORS = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError)


def codec_of(path: str) -> str | None:
  """The codec of a file of text, by its name; None if it is not compressed."""
  return CODECS.get(posixpath.splitext(paths.display(path))[1].lower())


def kind_of(head: bytes) -> str:
  """The kind of a file, by its first bytes; '' for text."""
  for kind, marks in {**_MAGIC, **_OTHERS}.items():
    if head.startswith(marks):
      return f'compressed by {kind}' if kind in _MAGIC else kind
  return _TAR if head[_TAR_MARK] == b'ustar' else ''


def foreign_encoding(head: bytes) -> str:
  """The encoding that a byte order mark names; '' for UTF-8 or no mark."""
  marks = [mark for mark in _FOREIGN_MARKS if head.startswith(mark)]
  return _FOREIGN_MARKS[marks[0]] if marks else ''


@contextlib.contextmanager
def open_stored(
  path: str, raw: Any, start: int = 0, end: int = sys.maxsize
) -> Iterator['io.BufferedReader[Any]']:
  """The content of an open file, decompressed where its name says so.

  Args:
    path: Its name.
    raw: The file, at its beginning; closed with the content.
    start: The byte to read from, as stored. If the file is compressed, it is 0
      or one of `frame_starts`.
    end: Where to stop, as `start`.

  Raises:
    Bad: its name says that it is compressed, and it has no byte.
    UserError: it is not what its name says.
    OSError: it is damaged or cut short; raised while reading.
  """
  codec = codec_of(path)
  is_all = start == 0 and end == sys.maxsize
  source = raw if is_all else _Range(raw, start, end)
  with io.BufferedReader(source, _BUFFER) as stored:
    if codec is None:
      yield stored
      return
    _check_name(path, codec, stored.peek(_HEAD)[:_HEAD])
    with io.BufferedReader(_Decompressed(stored, codec), _BUFFER) as content:
      kind = kind_of(content.peek(_HEAD)[:_HEAD])
      if kind and not start:
        raise UserError(
          f'{path} cannot be read: its content is {kind}. Unpack it first.'
        )
      yield content


def _check_name(path: str, codec: str, head: bytes) -> None:
  if not head:
    raise records.Bad('empty compressed file', f'0 bytes are not {codec}')
  if not any(mark.startswith(head[: len(mark)]) for mark in _MAGIC[codec]):
    kind = kind_of(head)
    raise UserError(
      f'{path} cannot be read: its name says {codec}, but it is '
      f'{kind or "not"}. Give it the right name, or compress it again.'
    )


def skip_mark(path: str, content: io.BufferedReader) -> int:
  """Skips the byte order mark of UTF-8, if there is one; returns its bytes.

  Raises:
    UserError: the content does not begin like UTF-8 text.
  """
  head = content.peek(_HEAD)[:_HEAD]
  mark = codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b''
  content.read(len(mark))
  kind = kind_of(head)
  if kind:
    names = [ext for ext, codec in CODECS.items() if kind.endswith(f' {codec}')]
    hint = f'Name it *{names[0]}' if names else 'Unpack or convert it'
    raise UserError(
      f'{path} cannot be read: its name says text, but it is {kind}. {hint}.'
    )
  encoding = foreign_encoding(head)
  if encoding:
    raise UserError(
      f'{path} cannot be read: its byte order mark says {encoding}, expected '
      f'UTF-8. Convert it: iconv -f {encoding} -t UTF-8.'
    )
  return len(mark)


def frame_starts(raw: Any) -> Iterator[int]:
  """Where the frames of an open zstd file begin, in bytes, without decoding.

  Ends where the file does, or where it is no longer zstd.
  """
  position = 0
  while True:
    raw.seek(position)
    head = raw.read(_FRAME_HEAD)
    if head.startswith(_SKIPPABLE):
      position += 8 + int.from_bytes(head[4:8], 'little')
    elif head.startswith(b'\0'):
      position += len(head) - len(head.lstrip(b'\0'))
    elif head.startswith(_MAGIC['zstd'][0]) and len(head) == _FRAME_HEAD:
      yield position
      try:
        position = _frame_end(raw, position, head)
      except zstandard.ZstdError:
        return
    else:
      return


def _frame_end(raw: Any, position: int, head: bytes) -> int:
  """Where the frame ends that begins at a position; see RFC 8878, 3.1.1."""
  position += zstandard.frame_header_size(head)
  is_last = 0
  while not is_last:
    raw.seek(position)
    block = raw.read(3)
    if len(block) < 3:
      break
    header = int.from_bytes(block, 'little')
    is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
    position += 3 + (1 if kind == _RLE_BLOCK else size)
  checksum = zstandard.get_frame_parameters(head).has_checksum
  return position + 4 * checksum


def text_of(data: bytes) -> str:
  """The text of a whole file, unchanged; raises `records.Bad`."""
  kind = kind_of(data[:_HEAD])
  try:
    text = records.utf8(data)
  except records.Bad as bad:
    what = kind or foreign_encoding(data)
    detail = f'{bad.args[1]}: it is {what}' if what else bad.args[1]
    raise records.Bad(bad.args[0], detail) from None
  if kind == _TAR:  # A tar of UTF-8 texts is UTF-8 itself.
    raise records.Bad('an archive', f'it is {kind}')
  return text


class _Range(io.RawIOBase):
  """The bytes of an open file from a start to an end."""

  def __init__(self, raw: Any, start: int, end: int):
    raw.seek(start)
    self._raw, self._left = raw, end - start

  def readable(self) -> bool:
    """True."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Fills a buffer, and returns the number of bytes; 0 at the end."""
    data = self._raw.read(min(len(buffer), self._left))
    buffer[: len(data)] = data
    self._left -= len(data)
    return len(data)


class _Decompressed(io.RawIOBase):
  """Reads all members or frames of a file; zeros may follow."""

  def __init__(self, stored: 'io.BufferedReader[Any]', codec: str):
    self._stored, self._codec = stored, codec
    self._decoder: Any = None  # of the member that is being read
    self._rest = b''  # stored bytes that are not decoded yet
    self._output = memoryview(b'')

  def readable(self) -> bool:
    """True."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Fills a buffer, and returns the number of bytes; 0 at the end."""
    while not self._output:
      data = self._rest or self._stored.read(_CHUNK)
      self._rest = b''
      if not data:
        if self._decoder is not None:
          raise OSError(f'it is cut short, within what {self._codec} packed')
        return 0
      self._output = memoryview(self._decoded(data))
    size = min(len(buffer), len(self._output))
    buffer[:size] = self._output[:size]
    self._output = self._output[size:]
    return size

  def _decoded(self, data: bytes) -> bytes:
    """Decodes stored bytes; those of the next member are kept as the rest."""
    if self._decoder is None:
      data = data.lstrip(b'\0')  # Tapes and disks pad files to whole blocks.
      if not data:
        return b''
      self._decoder = _DECODERS[self._codec]()
    try:
      decoded = self._decoder.decompress(data)
    except _DECODE_ERRORS as error:
      raise OSError(f'it is damaged: {self._codec} says {error}') from None
    if self._decoder.eof:
      self._rest, self._decoder = self._decoder.unused_data, None
    return decoded
