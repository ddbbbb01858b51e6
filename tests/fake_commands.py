"""Commands on the PATH that record their calls and give prepared answers."""

import json
import os
import pathlib
import sys

# Answers are used in order, each once; the last one that fits is kept.
_PROGRAM = """#!{python} -SE
import fcntl, json, sys
with open({file!r}, 'r+') as file:
  fcntl.flock(file, fcntl.LOCK_EX)
  state = json.load(file)
  call = {{'arguments': sys.argv[1:]}}
  if sys.argv[-1] in ('-', '--config=-'):
    call['input'] = sys.stdin.read()
  state['calls'].append(call)
  text = ' '.join(sys.argv[1:])
  fitting = [
    answer
    for answer in state['answers']
    if all(word in text for word in answer['words'])
  ]
  answer = fitting[0] if fitting else dict(output='', error='', code=0)
  if len(fitting) > 1:
    state['answers'].remove(answer)
  file.seek(0)
  file.truncate()
  json.dump(state, file)
sys.stdout.write(answer['output'])
sys.stderr.write(answer['error'])
sys.exit(answer['code'])
"""


class FakeCommand:
  """One command; without an answer that fits it prints nothing and succeeds."""

  def __init__(self, folder: pathlib.Path, name: str):
    """Makes `folder/name`; `environment` puts the folder on the PATH."""
    self.name, self._file = name, folder / f'{name}.json'
    self._file.write_text(json.dumps({'calls': [], 'answers': []}))
    program = folder / name
    program.write_text(
      _PROGRAM.format(python=sys.executable, file=str(self._file))
    )
    program.chmod(0o755)
    self.environment = {
      **os.environ,
      'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
    }

  def answer(self, *words: str, output='', error='', code: int = 0) -> None:
    """The answer to the next call whose arguments have all these words."""
    state = json.loads(self._file.read_text())
    text = output if isinstance(output, str) else json.dumps(output)
    state['answers'].append(
      {'words': words, 'output': text, 'error': error, 'code': code}
    )
    self._file.write_text(json.dumps(state))

  def calls(self, *words: str) -> list[list[str]]:
    """The arguments of each call that has all these words, in order."""
    return [
      call['arguments']
      for call in json.loads(self._file.read_text())['calls']
      if all(word in ' '.join(call['arguments']) for word in words)
    ]

  def inputs(self) -> list[str]:
    """What was given to commands that read standard input."""
    calls = json.loads(self._file.read_text())['calls']
    return [call['input'] for call in calls if 'input' in call]
