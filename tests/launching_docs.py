"""The commands and the config of docs/launching.md."""

import pathlib
import re
import shlex
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / 'docs/launching.md').read_text()
# As the page sets them.
VARIABLES = {
  'PROJECT': 'my-project',
  'ZONE': 'us-west4-a',
  'REGION': 'us-west4',
  'BUCKET': 'bucket',
  'IMAGE': 'us-west4-docker.pkg.dev/my-project/images/infoprune_jax:1',
}


def blocks(language: str) -> list[str]:
  """The code blocks in a language, those of list items too."""
  found = re.findall(rf'^( *)```{language}\n(.*?)^ *```$', TEXT, re.S | re.M)
  return [textwrap.dedent(code) for _, code in found]


def config() -> str:
  """The config of the example, over the bucket of the tests."""
  [code] = blocks('python')
  return code.replace('gs://my-bucket/', f'gs://{VARIABLES["BUCKET"]}/')


def commands(script: str) -> list[list[str]]:
  """The commands of a script of tools/, as a shell reads them."""
  result = []
  for block in blocks('sh'):
    text = block.replace('\\\n', ' ')
    for name, value in VARIABLES.items():
      text = text.replace(f'${name}', value)
    for part in re.split(r'^(?=\S)', text, flags=re.M):
      words = shlex.split(part)
      places = [n for n, w in enumerate(words) if w == f'tools/{script}']
      result += [words[place:] for place in places]
  return result
