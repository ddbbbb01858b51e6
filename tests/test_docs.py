"""The README and the pages below docs/: their links, commands and options."""

import pathlib
import re

import pytest
from absl import flags

from configs import base, jsonl
from infoprune_jax import main, stages

ROOT = pathlib.Path(base.__file__).parents[1]
README = ROOT / 'README.md'
PAGES = sorted([README, ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').iterdir()])
COMMAND = 'python -m infoprune_jax.main'


def name_of(page: pathlib.Path) -> str:
  return str(page.relative_to(ROOT))


def commands_of(page: pathlib.Path) -> list[str]:
  """The commands of the code blocks, each with its continued lines."""
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), re.S | re.M)
  blocks = [text for language, text in fenced if not language]
  return [
    f'{COMMAND}{rest}' for block in blocks for rest in block.split(COMMAND)[1:]
  ]


def test_the_readme_is_short():
  assert len(README.read_text().splitlines()) <= 250


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  for link in re.findall(r'\]\((?!https?:)([^)]+)\)', page.read_text()):
    name, _, anchor = link.partition('#')
    target = page.parent / name if name else page
    assert target.exists(), link
    if anchor:
      titles = re.findall(r'^#+ (.+)$', target.read_text(), re.M)
      assert anchor in [t.lower().replace(' ', '-') for t in titles], link


def test_the_readme_links_every_page():
  linked = set(re.findall(r'\]\((docs/\w+\.md)', README.read_text()))
  assert linked == {name_of(p) for p in PAGES if p.parent.name == 'docs'}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_commands_name_what_there_is(page):
  """Flags, jobs, config files of this repository, and options of a config."""
  known = flags.FLAGS.get_flags_for_module(main)
  defined = {'config', *(flag.name for flag in known)}
  jobs = set(stages.STAGES)
  for command in commands_of(page):
    for name in re.findall(r'--(\w+)(?=[=\s\]])', command.split('="(')[0]):
      assert name in defined, command
    for job in re.findall(r'--job=([a-z_]+)', command):
      assert job in jobs, command
    for path in re.findall(r'--config=(\S+)', command):
      assert path == 'configs/mine.py' or (ROOT / path).exists(), command
    for option in re.findall(r'--config\.([\w.]+)=', command):
      if option != 'a.b':
        node = jsonl.get_config()
        for key in option.split('.'):
          assert key in node, f'{command}: no {key!r} in {option!r}'
          node = node[key]


def test_there_are_commands():
  assert sum(len(commands_of(page)) for page in PAGES) > 10


def test_the_table_of_stages_is_theirs():
  """Rewrite the table in docs/artifacts.md when a stage changes."""
  text = (ROOT / 'docs/artifacts.md').read_text()
  rows = ''.join(
    f'| `{name}` | {stage.reads} | {stage.writes} | {stage.about} |\n'
    for name, stage in stages.STAGES.items()
  )
  assert rows in text, rows
