"""A page in headless Chromium, by the protocol of its developer tools."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')


def binary() -> str | None:
  """The path of Chromium, or None if it is not installed."""
  return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
  """An open page. Commands go through a pipe, and need no port."""

  def __init__(self, commands: int, answers: int):
    self._commands, self._answers = commands, answers
    self._read, self._number, self._session = b'', 0, ''
    made = self._send('Target.createTarget', url='about:blank')
    attached = self._send(
      'Target.attachToTarget', targetId=made['targetId'], flatten=True
    )
    self._session = attached['sessionId']

  def _message(self) -> dict[str, Any]:
    while b'\0' not in self._read:
      block = os.read(self._answers, 1 << 20)
      assert block, 'Chromium has ended'
      self._read += block
    text, _, self._read = self._read.partition(b'\0')
    return json.loads(text)

  def _send(self, method: str, **params: Any) -> dict[str, Any]:
    self._number += 1
    command = {'id': self._number, 'method': method, 'params': params}
    if self._session:
      command['sessionId'] = self._session
    os.write(self._commands, json.dumps(command).encode() + b'\0')
    while (message := self._message()).get('id') != self._number:
      pass  # An event.
    assert 'error' not in message, message
    return message['result']

  def open(self, path: pathlib.Path) -> None:
    self._send('Page.navigate', url=path.as_uri())
    self.run(
      'new Promise(done => document.readyState === "complete" '
      '? done() : addEventListener("load", () => done()))'
    )

  def emulate(
    self, width: int, scheme: str = 'light', media: str = 'screen'
  ) -> None:
    """Sets the width in CSS pixels, 'light' or 'dark', 'screen' or 'print'."""
    self._send(
      'Emulation.setDeviceMetricsOverride',
      **{'width': width, 'height': 900, 'deviceScaleFactor': 1},
      mobile=False,
    )
    feature = {'name': 'prefers-color-scheme', 'value': scheme}
    self._send('Emulation.setEmulatedMedia', media=media, features=[feature])

  def run(self, script: str) -> Any:
    """The value of an expression of JavaScript, awaited."""
    result = self._send(
      'Runtime.evaluate',
      **{'expression': script, 'awaitPromise': True, 'returnByValue': True},
    )
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  def pdf(self) -> bytes:
    """The page as it is printed."""
    printed = self._send('Page.printToPDF', preferCSSPageSize=True)
    return base64.b64decode(printed['data'])

  def png(self) -> bytes:
    """All of the page as an image."""
    taken = self._send('Page.captureScreenshot', captureBeyondViewport=True)
    return base64.b64decode(taken['data'])


@contextlib.contextmanager
def page(profile: pathlib.Path) -> Iterator[Page]:
  """Starts Chromium with a profile of its own, and ends it."""
  read_commands, commands = os.pipe()
  answers, write_answers = os.pipe()

  def connect() -> None:
    # Chromium reads its file 3, and writes to its file 4.
    for file, number in ((read_commands, 3), (write_answers, 4)):
      os.dup2(file, number)
      os.set_inheritable(number, True)

  process = subprocess.Popen(
    [
      *(str(binary()), '--headless', '--remote-debugging-pipe'),
      *('--no-sandbox', '--disable-gpu', f'--user-data-dir={profile}'),
    ],
    preexec_fn=connect,
    pass_fds=(3, 4),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  os.close(read_commands)
  os.close(write_answers)
  try:
    yield Page(commands, answers)
  finally:
    os.close(commands)
    os.close(answers)
    process.terminate()
    process.wait(30)
