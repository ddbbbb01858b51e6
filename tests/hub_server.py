"""A Hugging Face Hub on this machine: the requests that reading needs."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

REPOSITORY = r'(?P<repository>[^/]+/[^/]+)'
INFO = re.compile(
  rf'/api/(?P<kind>model|dataset)s/{REPOSITORY}(/revision/(?P<revision>[^/]+))?'
)
TREE = re.compile(
  rf'/api/(?P<kind>model|dataset)s/{REPOSITORY}/tree/(?P<revision>[^/]+)'
  r'(/(?P<path>.+))?'
)
FILE = re.compile(
  rf'/(?P<datasets>datasets/)?{REPOSITORY}/resolve/(?P<revision>[^/]+)'
  r'/(?P<path>.+)'
)


@dataclasses.dataclass
class Repository:
  """Files by commit, and the commit of each branch and tag."""

  commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
  references: dict[str, str] = dataclasses.field(default_factory=dict)
  is_gated: bool = False  # Its files are not given, but its names are.

  def commit(self, files: dict[str, bytes], *references: str) -> str:
    """Adds a commit of these files, to which `main` and references point."""
    digest = hashlib.sha1(str(sorted(files.items())).encode()).hexdigest()
    self.commits[digest] = files
    self.references |= dict.fromkeys(('main', *references), digest)
    return digest


class Hub:
  """Repositories, and a log of requests: method, path and range of bytes."""

  def __init__(self):
    self.repositories: dict[tuple[str, str], Repository] = {}
    self.requests: list[tuple[str, str, str]] = []
    handler = functools.partial(_Handler, self)
    self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self._server.server_address[1]}'

  def add(self, name: str, kind: str = 'model') -> Repository:
    """A new repository without commits."""
    return self.repositories.setdefault((kind, name), Repository())

  @property
  def files_sent(self) -> list[str]:
    """The paths of the files of which a byte was asked for."""
    paths = (path for method, path, _ in self.requests if method == 'GET')
    found = (FILE.fullmatch(urllib.parse.unquote(path)) for path in paths)
    return sorted({match['path'] for match in found if match})

  def stop(self) -> None:
    self._server.shutdown()
    self._server.server_close()


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
  hub = Hub()
  try:
    yield hub
  finally:
    hub.stop()


class _Refused(Exception):
  """Status and error code of an answer."""


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def __init__(self, hub: Hub, *args: Any):
    self._hub = hub
    super().__init__(*args)

  def log_message(self, *args: Any) -> None:
    pass

  def do_HEAD(self) -> None:
    self._answer()

  def do_GET(self) -> None:
    self._answer()

  def _answer(self) -> None:
    url = urllib.parse.urlsplit(self.path)
    wanted = self.headers.get('Range', '')
    self._hub.requests.append((self.command, url.path, wanted))
    try:
      data, headers = self._content(url, wanted)
      status = 206 if wanted else 200
    except _Refused as refused:
      status, code = refused.args
      data, headers = b'', {'X-Error-Code': code}
    self.send_response(status)
    for name, value in {'Content-Length': str(len(data)), **headers}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(data)

  def _content(
    self, url: urllib.parse.SplitResult, wanted: str
  ) -> tuple[bytes, dict[str, str]]:
    if match := INFO.fullmatch(url.path):
      commit, files = self._files(match, match['kind'])
      siblings = [{'rfilename': name} for name in files]
      return _json(id=match['repository'], sha=commit, siblings=siblings), {}
    if match := TREE.fullmatch(url.path):
      _, files = self._files(match, match['kind'])
      recursive = 'recursive=true' in url.query.lower()
      folder = urllib.parse.unquote(match['path'] or '')
      return json.dumps(list(_tree(files, folder, recursive))).encode(), {}
    match = FILE.fullmatch(url.path)
    if not match:
      raise _Refused(501, 'NotOfThisServer')
    kind = 'dataset' if match['datasets'] else 'model'
    commit, files = self._files(match, kind)
    if self._hub.repositories[kind, match['repository']].is_gated:
      raise _Refused(403, 'GatedRepo')
    path = urllib.parse.unquote(match['path'])
    if path not in files:
      raise _Refused(404, 'EntryNotFound')
    data = files[path]
    tag = f'"{hashlib.sha1(data).hexdigest()}"'
    headers = {'ETag': tag, 'X-Repo-Commit': commit, 'Accept-Ranges': 'bytes'}
    if wanted:
      start, stop = re.fullmatch(r'bytes=(\d+)-(\d*)', wanted).groups()
      end = int(stop) + 1 if stop else len(data)
      headers['Content-Range'] = f'bytes {start}-{end - 1}/{len(data)}'
      data = data[int(start) : end]
    return data, headers

  def _files(self, match: re.Match, kind: str) -> tuple[str, dict[str, bytes]]:
    repository = self._hub.repositories.get((kind, match['repository']))
    if repository is None:  # The Hub does not say that there is none.
      raise _Refused(401, 'RepoNotFound')
    revision = urllib.parse.unquote(match['revision'] or 'main')
    commit = repository.references.get(revision, revision)
    if commit not in repository.commits:
      raise _Refused(404, 'RevisionNotFound')
    return commit, repository.commits[commit]


def _json(**values: Any) -> bytes:
  return json.dumps(values).encode()


def _tree(
  files: dict[str, bytes], folder: str, recursive: bool
) -> Iterator[dict[str, Any]]:
  """What is below a folder: all of it, or its own files and folders."""
  start = f'{folder}/' if folder else ''
  seen = set()
  for path, data in sorted(files.items()):
    if not path.startswith(start):
      continue
    *parents, _ = path[len(start) :].split('/')
    for depth in range(1, len(parents) + 1 if recursive else 2):
      parent = start + '/'.join(parents[:depth])
      if parents and parent not in seen:
        seen.add(parent)
        oid = hashlib.sha1(parent.encode()).hexdigest()
        yield {'type': 'directory', 'path': parent, 'size': 0, 'oid': oid}
    if recursive or not parents:
      oid = hashlib.sha1(data).hexdigest()
      yield {'type': 'file', 'path': path, 'size': len(data), 'oid': oid}
