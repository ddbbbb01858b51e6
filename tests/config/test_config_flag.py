"""A config file that fails is told by its line; tuples as a shell gives them."""

import os
import subprocess
import sys

import pytest

from configs import base
from infoprune_jax import dry_run
from infoprune_jax.config import config_flag, experiment as config_lib
from infoprune_jax.config.validation import UserError

FAILING = [
  ('int("three")', 'ValueError: invalid literal'),
  ('{}["seeds"]', "KeyError: 'seeds'"),
  ('1 / 0', 'ZeroDivisionError: division by zero'),
  ('None.train', "AttributeError: 'NoneType' object"),
  ('len(3)', 'TypeError: object of type'),
  ('__import__("no_such_package")', 'ModuleNotFoundError: No module'),
  ('exec("raise SystemExit(3)")', 'SystemExit: 3'),
]


@pytest.mark.parametrize('code, reason', FAILING)
def test_says_the_line_of_the_config_that_fails(tmp_path, code, reason):
  file = tmp_path / 'mine.py'
  file.write_text(f'def get_config():\n  x = 1\n  return {code}\n')
  with pytest.raises(UserError) as error:
    config_flag.load(str(file))
  assert str(error.value).startswith(f'{file}, line 3: {reason}')


@pytest.mark.parametrize(
  'code, option',
  [
    ('config.train.training.learning_rat', "'learning_rat'"),
    ('config["trin"]', "'trin'"),
    ('config.trin.update(seeds=(0,))', "'trin'"),
    ('del config.select.arms.ful', "'ful'"),
  ],
)
def test_a_mistyped_option_is_named_without_python_words(
  tmp_path, code, option
):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from configs import base\n\n\ndef get_config():\n'
    f'  config = base.get_config()\n  {code}\n  return config\n'
  )
  with pytest.raises(UserError) as error:
    config_flag.load(str(file))
  said = str(error.value)
  assert said.startswith(f'{file}, line 6: there is no option {option}.')
  assert 'Error' not in said


def test_says_the_line_of_a_file_that_the_config_imports(tmp_path, monkeypatch):
  (tmp_path / 'shared_values.py').write_text('def size():\n  return int("x")\n')
  file = tmp_path / 'mine.py'
  file.write_text('import shared_values\nget_config = shared_values.size\n')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(UserError, match=r'shared_values\.py, line 2: ValueError'):
    config_flag.load(str(file))


def test_blames_no_module_of_this_package(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
    'from infoprune_jax.runtime import files\n\n\n'
    "def get_config():\n  return files.read_record(3, '')\n"
  )
  with pytest.raises(UserError) as raised:
    config_flag.load(str(file))
  assert str(raised.value).startswith(f'{file}, line 5: ')


@pytest.mark.parametrize(
  'text, reason',
  [
    ('def get_config(:\n', 'line 1: SyntaxError'),
    ('x = 1\n', r'has no function get_config\(\)'),
    ('def get_config():\n  pass\n', 'returned None'),
    ('def get_config():\n  return 3\n', r'returned 3 \(int\)'),
  ],
)
def test_refuses_what_gives_no_config(tmp_path, text, reason):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  with pytest.raises(UserError, match=reason):
    config_flag.load(str(file))


def test_refuses_a_folder_and_a_file_that_is_not_there(tmp_path):
  with pytest.raises(UserError, match='is a folder'):
    config_flag.load(str(tmp_path))
  with pytest.raises(UserError, match='There is no config file'):
    config_flag.load(str(tmp_path / 'gone.py'))


@pytest.mark.parametrize(
  'text, items',
  [
    ('a,b', ('a', 'b')),
    ('a, b.jsonl', ('a', 'b.jsonl')),
    ('0', (0,)),
    ('0,1,2', (0, 1, 2)),
    ("('x',)", ('x',)),
    ('(top)', ('top',)),
    ('"a, b.jsonl",c', ('a, b.jsonl', 'c')),
    ('', ()),
  ],
)
def test_splits_a_tuple_at_commas(text, items):
  assert config_flag.TupleParser().parse(text) == items


@pytest.mark.parametrize(
  'option, said',
  [
    ('train.armz', "config.train has no option 'armz'"),
    ('train.arms.x', 'config.train.arms is a value'),
    ('train.seeds[0]', 'config.train.seeds[0] is part of a value'),
    ('select.arms.two[1].fractio', "arms.two[1] has no option 'fractio'"),
    ('select.arms.two[2].fraction', 'arms.two has 2 entries, from [0]'),
    ('select.arms.full[0].keep', 'arms.full has no entries: leave out [0]'),
  ],
)
def test_names_what_an_option_on_the_command_line_lacks(option, said):
  config = base.get_config()
  config.select.arms.two = (base.arm('all'), base.arm('all'))
  assert said in config_flag.missing_option(config, option)
  assert config_flag.missing_option(config, 'select.arms.two[1].keep') == ''
  assert config_flag.missing_option(config, 'train.arms') == ''


def test_the_name_of_a_file_may_hold_a_comma(tmp_path):
  path = tmp_path / 'a, b.jsonl'
  path.write_text('')
  assert config_flag.TupleParser().parse(str(path)) == (str(path),)


def test_refuses_an_empty_item():
  with pytest.raises(ValueError, match='item 2 of'):
    config_flag.TupleParser().parse('a,,b')


def test_names_of_sources_and_kinds_may_hold_dots():
  config = base.get_config()
  config.corpus.sources['code.python'] = base.jsonl('x.jsonl')
  config.report.kinds['prog.code'] = ('code.*',)
  built = config_lib.from_mapping(config)
  assert list(built.corpus.sources) == ['code.python']
  assert dict(built.report.kinds) == {'prog.code': ('code.*',)}


def test_a_dry_run_refuses_a_job_that_is_none(tmp_path):
  config = base.get_config()
  config.corpus.sources.mine = base.jsonl('x.jsonl')
  with pytest.raises(UserError, match="Did you mean 'score'"):
    dry_run.run(config_lib.from_mapping(config), str(tmp_path), 'scroe')


def test_prints_any_text_in_an_ascii_locale(tmp_path):
  """Names of a source, of its file and of the config that are not ASCII."""
  (tmp_path / 'données.jsonl').write_text('{"text": "é"}\n', encoding='utf-8')
  file = tmp_path / 'été.py'
  file.write_text(
    'from configs import base\n\n\ndef get_config():\n'
    '  config = base.get_config()\n'
    f'  config.corpus.sources["naïve"] = base.jsonl("{tmp_path}/d*.jsonl")\n'
    '  return config\n',
    encoding='utf-8',
  )
  environment = {
    **os.environ,
    'LC_ALL': 'C',
    'PYTHONUTF8': '0',
    'PYTHONCOERCECLOCALE': '0',
  }
  result = subprocess.run(
    [
      *(sys.executable, '-m', 'infoprune_jax.main', f'--config={file}'),
      *(f'--workdir={tmp_path}/é', '--dry_run'),
    ],
    env=environment,
    capture_output=True,
  )
  assert result.returncode == 0, result
  assert f'{tmp_path}/é'.encode() in result.stdout
  assert 'Traceback' not in result.stderr.decode()
