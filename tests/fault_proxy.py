"""An HTTP proxy before an object store, whose faults replay by their seed.

Whether the nth request of a kind for a name is disturbed, and how, is a
function of the seed alone: whatever the order of requests by several processes.
The emulator knows no preconditions on generations, so the proxy enforces them.
"""

import collections
import dataclasses
import hashlib
import http.client
import http.server
import json
import re
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Each class of requests, and the faults that it can meet:
# delay    the answer comes late
# 503, 429 the store refuses, and does nothing
# reset    the connection is reset before the store does anything
# lost     the connection is reset after the store did it
# cut      the connection ends amid the answer
# short    the answer is whole by its own length, and lacks the end of the file
# stale    a listing shows deleted names, and none that are new
FAULTS: Mapping[str, Sequence[str]] = {
  'read': ('delay', '503', '429', 'reset', 'cut', 'short'),
  'metadata': ('delay', '503', '429', 'reset', 'cut'),
  'list': ('delay', '503', '429', 'reset', 'cut', 'stale', 'stale'),
  'write': ('delay', '503', '429', 'reset', 'lost'),
  'delete': ('delay', '503', '429', 'reset', 'lost'),
}
STALE_SECONDS = 10.0  # by which a stale listing is old
# TensorStore reads these. It notices a short answer, and raises an error.
_OF_TENSORSTORE = re.compile(r'/ocdbt\.|/checkpoints/\d+/\w+/(d/|manifest)')
_HOP = ('connection', 'keep-alive', 'transfer-encoding', 'content-length')
# Times and random numbers in names, which differ between runs.
_RANDOM = re.compile(r'[0-9a-f]{12,}|\d{6,}')


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which requests are disturbed."""

  seed: int
  rate: float  # the fraction of requests
  most: int = 1 << 30  # faults; later requests pass undisturbed

  def fault(self, kind: str, name: str, nth: int) -> str:
    """The fault that the nth request of a kind for a name meets, or ''."""
    text = f'{self.seed} {kind} {_RANDOM.sub("#", name)} {nth}'
    digest = hashlib.sha256(text.encode()).digest()
    chance, choice = struct.unpack('>QQ', digest[:16])
    faults = FAULTS.get(kind, ())
    if not faults or chance >= self.rate * 2**64:
      return ''
    fault = faults[choice % len(faults)]
    if fault == 'short' and _OF_TENSORSTORE.search(name):
      return 'cut'
    return fault


@dataclasses.dataclass
class Request:
  """One request, as the store's API means it."""

  method: str
  path: str  # with the query
  body: bytes
  headers: Any

  def __post_init__(self):
    parts = urllib.parse.urlsplit(self.path)
    self.query = dict(urllib.parse.parse_qsl(parts.query))
    place = urllib.parse.unquote(parts.path).partition('/b/')[2]
    self.bucket, _, rest = place.partition('/o')
    self.name = rest.lstrip('/') or self.query.get('name', '')
    if not self.name and self.method == 'POST':
      given = re.search(rb'"name":\s*("[^"\n]+")', self.body[:4096])
      self.name = json.loads(given[1]) if given else ''

  @property
  def kind(self) -> str:
    """A key of `FAULTS`, or ''."""
    if self.method in ('POST', 'PUT'):
      if '/batch/' in self.path:
        return 'delete'
      return 'write' if '/upload/' in self.path else ''
    if self.method == 'DELETE':
      return 'delete'
    if self.query.get('alt') == 'media' or '/download/' in self.path:
      return 'read'
    if self.name:
      return 'metadata'
    return 'list' if '/o' in self.path else ''

  def deleted(self) -> list[str]:
    """The names that it deletes."""
    if self.method == 'DELETE':
      return [self.name]
    names = re.findall(rb'DELETE \S*/o/(\S+)', self.body)
    return [urllib.parse.unquote(name.decode()) for name in names]


@dataclasses.dataclass
class Answer:
  """The store's answer."""

  status: int
  headers: list[tuple[str, str]]
  body: bytes


def _error(status: int, message: str) -> Answer:
  body = json.dumps({'error': {'code': status, 'message': message}}).encode()
  return Answer(status, [('Content-Type', 'application/json')], body)


class FaultProxy:
  """Passes requests on to a store, but for those that `plan` disturbs."""

  def __init__(self, url: str, plan: Plan | None = None):
    """Starts it.

    Args:
      url: Of the store.
      plan: None to disturb nothing.
    """
    self.plan = plan
    self.faults: list[tuple[str, str, str]] = []  # fault, kind, name
    self._store = urllib.parse.urlsplit(url).netloc
    self._lock, self._writing = threading.Lock(), threading.Lock()
    self._seen: collections.Counter[tuple[str, str]] = collections.Counter()
    self._born: dict[str, float] = {}
    self._dead: dict[str, tuple[float, Any]] = {}
    self._conditions: dict[str, str] = {}  # by id of an upload
    self._completed: dict[str, Answer] = {}  # by id of an upload
    self.requests = 0
    self.refused_writes = False  # Whether nobody may write.
    handler = type('Handler', (_Handler,), {'proxy': self})
    self._server = _Server(('127.0.0.1', 0), handler)
    self.netloc = f'127.0.0.1:{self._server.server_port}'
    self.url = f'http://{self.netloc}'
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def stop(self) -> None:
    self._server.shutdown()
    self._server.server_close()

  def counts(self) -> dict[str, int]:
    """How many faults of each sort there were."""
    return dict(collections.Counter(fault for fault, _, _ in self.faults))

  def fault(self, request: Request) -> str:
    """The fault of this request, which is noted, or ''."""
    with self._lock:
      self.requests += 1
      name = request.name or request.query.get('prefix', '')
      key = (request.kind, _RANDOM.sub('#', name))
      self._seen[key] += 1
      plan = self.plan
      if plan is None or len(self.faults) >= plan.most:
        return ''
      fault = plan.fault(request.kind, name, self._seen[key])
      if fault and fault not in ('short', 'cut', 'stale'):
        self.faults.append((fault, request.kind, name))
      return fault

  def note(self, fault: str, request: Request) -> None:
    """Notes a fault that depends on the answer."""
    name = request.name or request.query.get('prefix', '')
    with self._lock:
      self.faults.append((fault, request.kind, name))

  def answer(self, request: Request) -> Answer:
    """What the store answers, with preconditions."""
    if request.kind not in ('write', 'delete'):
      return self._forward(request)
    if self.refused_writes:
      return _error(403, 'the caller does not have storage.objects.create')
    with self._writing:
      return self._write(request)

  def _write(self, request: Request) -> Answer:
    condition = request.query.get('ifGenerationMatch')
    upload = request.query.get('upload_id', '')
    if upload in self._completed:  # As GCS does, and the emulator does not.
      return self._completed[upload]
    condition = condition or self._conditions.get(upload)
    if condition is not None and condition != self._generation(request):
      return _error(412, 'conditionNotMet')
    now = time.monotonic()
    for name in request.deleted():
      entry = self._forward(_get(request.bucket, name))
      if entry.status == 200:
        self._dead[name] = now, json.loads(entry.body)
    answer = self._forward(request)
    if request.kind == 'write':
      self._born.setdefault(request.name, now)
    for name in request.deleted():
      self._born.pop(name, None)
    if upload and answer.status == 200:
      self._completed[upload] = answer
    location = dict(answer.headers).get('Location', '')
    if location and condition is not None:
      query = urllib.parse.urlsplit(location).query
      self._conditions[dict(urllib.parse.parse_qsl(query))['upload_id']] = (
        condition
      )
    return answer

  def _generation(self, request: Request) -> str:
    answer = self._forward(_get(request.bucket, request.name))
    if answer.status != 200:
      return '0'
    return json.loads(answer.body)['generation']

  def _forward(self, request: Request) -> Answer:
    connection = http.client.HTTPConnection(self._store, timeout=60)
    headers = {
      name: value
      for name, value in request.headers.items()
      if name.lower() not in _HOP and name.lower() != 'expect'
    }
    try:
      connection.request(request.method, request.path, request.body, headers)
      response = connection.getresponse()
      body = response.read()
    finally:
      connection.close()
    kept = [
      (name, value.replace(self._store, self.netloc))
      for name, value in response.getheaders()
      if name.lower() not in _HOP
    ]
    length = response.getheader('Content-Length')
    if request.method == 'HEAD' and length:
      kept.append(('Content-Length', length))
    return Answer(response.status, kept, body)

  def stale(self, request: Request, answer: Answer) -> Answer:
    """A listing as it was some time ago, of the names alone."""
    page = json.loads(answer.body)
    prefix = request.query.get('prefix', '')
    delimiter = request.query.get('delimiter')
    if answer.status != 200 or 'pageToken' in request.query:
      return answer
    then = time.monotonic() - STALE_SECONDS
    hidden = {name for name, born in self._born.items() if born > then}
    items = {i['name']: i for i in page.get('items', [])}
    folders = set(page.get('prefixes', []))
    for name in hidden:
      items.pop(name, None)
    for folder in [*folders]:
      if self._is_new(request, folder, hidden):
        folders.discard(folder)
    for name, (died, entry) in self._dead.items():
      if died <= then or not name.startswith(prefix):
        continue
      below = name[len(prefix) :]
      if delimiter and delimiter in below:
        folders.add(prefix + below.partition(delimiter)[0] + delimiter)
      else:
        items.setdefault(name, entry)
    shown = [items[name] for name in sorted(items)]
    if shown == page.get('items', []) and folders == {
      *page.get('prefixes', [])
    }:
      return answer
    self.note('stale', request)
    page |= {'items': shown, 'prefixes': sorted(folders)}
    return dataclasses.replace(answer, body=json.dumps(page).encode())

  def _is_new(self, request: Request, folder: str, hidden: set[str]) -> bool:
    """Whether all below a folder was written since."""
    if not any(name.startswith(folder) for name in hidden):
      return False
    query = urllib.parse.urlencode({'prefix': folder})
    path = f'/storage/v1/b/{request.bucket}/o?{query}'
    page = json.loads(self._forward(Request('GET', path, b'', {})).body)
    return {item['name'] for item in page.get('items', [])} <= hidden


def _get(bucket: str, name: str) -> Request:
  path = f'/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe="")}'
  return Request('GET', path, b'', {})


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True
  request_queue_size = 128

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Is silent about clients that are killed, or have read enough."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  """One connection."""

  protocol_version = 'HTTP/1.1'
  proxy: FaultProxy

  def log_message(self, format: str, *args: Any) -> None:
    """Logs nothing."""

  def _serve(self) -> None:
    request = Request(self.command, self.path, self._body(), self.headers)
    fault = self.proxy.fault(request)
    if fault == 'reset':
      return self._reset()
    if fault in ('503', '429'):
      return self._send(_error(int(fault), 'under fire'))
    if fault == 'delay':
      time.sleep(0.5)
    answer = self.proxy.answer(request)
    if fault == 'lost':
      return self._reset()
    if fault == 'stale':
      answer = self.proxy.stale(request, answer)
    if fault in ('cut', 'short') and answer.status < 300 and answer.body:
      self.proxy.note(fault, request)
      half = answer.body[: len(answer.body) // 2]
      if fault == 'short':
        return self._send(dataclasses.replace(answer, body=half))
      self._send(dataclasses.replace(answer, body=half), len(answer.body))
      return self._reset()
    self._send(answer)

  def _body(self) -> bytes:
    if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
      return self.rfile.read(int(self.headers.get('Content-Length', 0)))
    return b''.join(self._chunks())

  def _chunks(self) -> Iterator[bytes]:
    while size := int(self.rfile.readline().partition(b';')[0], 16):
      yield self.rfile.read(size)
      self.rfile.readline()
    self.rfile.readline()

  def _send(self, answer: Answer, length: int | None = None) -> None:
    self.send_response_only(answer.status)
    for name, value in answer.headers:
      self.send_header(name, value)
    if self.command != 'HEAD':
      size = len(answer.body) if length is None else length
      self.send_header('Content-Length', str(size))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(answer.body)
    self.wfile.flush()

  def _reset(self) -> None:
    """Ends the connection without a word."""
    self.close_connection = True
    linger = struct.pack('ii', 1, 0)
    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    self.connection.shutdown(socket.SHUT_RD)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve
