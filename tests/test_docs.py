"""The README and the pages below docs/: their links, commands and options."""

import pathlib
import re
import tarfile

import pytest
from absl import flags

import infoprune_jax
from configs import base, jsonl
from infoprune_jax import main, stages
from infoprune_jax.config import experiment as config_lib
from infoprune_jax.config.scoring import TOKEN_STATISTICS, ScoringConfig
from infoprune_jax.config.validation import UserError
from infoprune_jax.selection.keep_set import KeepSet
from infoprune_jax.tokens import tables
from infoprune_jax.tokens.token_store import TokenStore

ROOT = pathlib.Path(base.__file__).parents[1]
README = ROOT / 'README.md'
PAGES = sorted(
  [README, ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')]
)
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
      file = path.split(':')[0]  # Without its argument.
      assert file == 'configs/mine.py' or (ROOT / file).exists(), command
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


def test_the_table_of_columns_names_all_of_them():
  page = (ROOT / 'docs/rules.md').read_text()
  _, _, section = page.partition('\n## Columns\n')
  table = section.partition('\n## ')[0]
  cells = re.findall(r'^\| (`.*?) \|', table, re.MULTILINE)
  named = {name for cell in cells for name in re.findall(r'`(\w+)`', cell)}
  scoring = ScoringConfig(
    sequence_length=8,
    window_overlap=0,
    dtype='float32',
    statistics=(*TOKEN_STATISTICS, 'nll_first_1', 'nll_last_1'),
  )
  sums = [name.replace('_1_', '_K_') for name in scoring.columns(['nll_sum'])]
  assert named == set(
    tables.rule_schema([*sums, 'nll_sum_NAME'], ['NAME']).names
  )


@pytest.fixture(scope='module')
def small_run(tmp_path_factory) -> pathlib.Path:
  """A folder with `corpus.jsonl` and the finished workdir `runs/small`."""
  path = tmp_path_factory.mktemp('docs')
  with tarfile.open(ROOT / 'tests/golden_workdir.tar.xz') as archive:
    archive.extractall(path, filter='data')
  (path / 'runs').mkdir()
  (path / 'workdir').rename(path / 'runs/small')
  return path


def python_of(page: str) -> list[str]:
  return re.findall(r'^```python\n(.*?)^```$', page, re.S | re.M)


def test_configs_of_corpora_are_valid():
  blocks = python_of((ROOT / 'docs/corpus.md').read_text())
  assert len(blocks) == 4
  for code in blocks:
    names: dict = {}
    exec(code, names)
    config_lib.from_mapping(names['get_config']())


def test_texts_are_scored_from_python(small_run, monkeypatch):
  monkeypatch.chdir(small_run)
  code, _ = python_of((ROOT / 'docs/python.md').read_text())
  names: dict = {}
  exec(code, names)
  assert names['losses'].nll_sum.shape == (2,)
  assert (names['nats_per_token'] > 0).all()
  assert len(names['first']) and (names['first'] > 0).all()
  assert (names['losses'].num_bytes == 20).all()


def test_a_keep_set_is_read_from_python(small_run, monkeypatch):
  """The records kept are those that the export has."""
  pytest.importorskip('datasets')
  pytest.importorskip('torch')
  monkeypatch.chdir(small_run)
  monkeypatch.setenv('HF_DATASETS_CACHE', str(small_run / 'cache'))
  _, code = python_of((ROOT / 'docs/python.md').read_text())
  names: dict = {}
  exec(code, names)
  store = TokenStore.open('runs/small')
  kept = KeepSet.open('runs/small', 'top_sum', store)
  expected = [
    store.shard(shard).table('example_id')['example_id'][int(document)].as_py()
    for shard in range(store.num_shards)
    for document in kept.doc_indices(shard)
  ]
  assert names['pruned']['id'] == expected
  seen = [one for batch in names['loader'] for one in batch['id']]
  assert sorted(seen) == sorted(expected)


def test_a_data_set_of_another_size_is_refused(small_run, monkeypatch):
  monkeypatch.chdir(small_run)
  with pytest.raises(UserError, match=r'has 60 documents .*, expected 59'):
    infoprune_jax.read_keep_set('runs/small', 'top_sum', num_records=59)
  with pytest.raises(UserError, match='keep set middle'):
    infoprune_jax.read_keep_set('runs/small', 'middle')
  drawn = infoprune_jax.read_keep_set('runs/small', 'random', num_records=60)
  assert 0 < len(drawn) < 60
