"""The flag `--config`: a config file, and options that flags after it set.

A config file is the user's code. If it raises an error, the user gets one
message with the file and line of their own code.
"""

import ast
import importlib.machinery
import os
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from infoprune_jax.config.validation import UserError, did_you_mean

_MODULE = 'config_file'  # The module of the classes in a config file.
_LIBRARIES = tuple(
  os.path.join(os.path.realpath(path), '')
  for path in (
    os.path.dirname(os.path.dirname(__file__)),  # All of infoprune_jax.
    *(sysconfig.get_path(name) for name in ('stdlib', 'purelib', 'platlib')),
  )
)
# Raised by absl and ml_collections for an option that cannot be set.
_REFUSALS = (
  flags.Error,
  AttributeError,
  LookupError,
  SyntaxError,
  TypeError,
  ValueError,
)


def define(help_string: str) -> flags.FlagHolder:
  """Defines `--config`, which has no default."""
  config_flags.register_flag_parser_for_type(tuple, TupleParser())
  holder = config_flags.DEFINE_config_file('config', None, help_string)
  flags.FLAGS['config'].parser = _FileParser()
  return holder


def parse(argv: Sequence[str]) -> list[str]:
  """Parses all flags; returns the arguments that are not flags.

  Raises:
    UserError: a flag is unknown, or its value or the config file is wrong.
  """
  try:
    rest = flags.FLAGS(list(argv))
  except _REFUSALS as error:
    for cause in _chain(error):  # absl wraps our error in its own.
      if isinstance(cause, UserError):
        raise cause from None
    quoted = isinstance(error, KeyError) and error.args
    text = str(error.args[0] if quoted else error)
    raise UserError(_unknown_option(argv) or _one_line(text)) from None
  if not flags.FLAGS['config'].value:
    raise UserError('Give --config=configs/demo.py, or your own.')
  return rest


def load(path: str) -> Any:
  """The config that `get_config` of a config file returns.

  Args:
    path: The file; after a colon, an argument of `get_config`.

  Raises:
    UserError: there is no such file, or its code raises an error.
  """
  file, *arguments = [path] if os.path.isfile(path) else path.split(':', 1)
  if os.path.isdir(file):
    raise UserError(
      f'--config={file} is a folder: name a config file, such as '
      f'{os.path.join(file, "demo.py")}.'
    )
  if not os.path.isfile(file):
    raise UserError(f'There is no config file {path!r}.')
  module = types.ModuleType(_MODULE)
  module.__file__ = file
  sys.modules[_MODULE] = module  # Dataclasses look up their module.
  try:
    importlib.machinery.SourceFileLoader(_MODULE, file).exec_module(module)
    get_config = getattr(module, 'get_config', None)
    config = get_config(*arguments) if callable(get_config) else None
  except (
    Exception,
    SystemExit,
  ) as error:  # The user's code may raise anything.
    raise UserError(_error_message(error, file)) from error
  if not callable(get_config):
    raise UserError(
      f'{file} has no function get_config(): a config file defines one, which '
      'returns the config.'
    )
  if not hasattr(config, 'items'):
    raise UserError(
      f'{file}: get_config() returned {config!r} ({type(config).__name__}), '
      'expected a ConfigDict: end it with `return config`.'
    )
  return config


class _FileParser(flags.ArgumentParser):
  """Loads a config file by `load`."""

  config: Any = None  # The last config, before options are set in it.

  def parse(self, path: str) -> Any:
    self.config = load(path)
    if hasattr(self.config, 'lock'):
      self.config.lock()
    return self.config


class TupleParser(tuple_parser.TupleParser):
  """A tuple on the command line: a Python tuple, or text that commas split.

  Blanks around an item are dropped. An item in quotes is taken as it is, commas
  and blanks too; so is the name of a file that exists.
  """

  def parse(self, argument: Any) -> tuple[Any, ...]:
    """The items; numbers only where all of them are Python literals."""
    return (
      _items(argument) if type(argument) is str else super().parse(argument)
    )


_ITEM = re.compile(r"""\s*("[^"]*"|'[^']*'|[^,]*?)\s*(,|$)""")


def _items(text: str) -> tuple[Any, ...]:
  try:
    value = ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    value = None
  if isinstance(value, str | int | float):
    return (value,)
  if isinstance(value, tuple | list):
    return tuple(value)
  if '\0' not in text and os.path.exists(text):
    return (text,)
  inner = text.strip()
  if inner[:1] + inner[-1:] in ('()', '[]'):
    inner = inner[1:-1].strip()
  items, start = [], 0
  while start < len(inner):  # A comma at the end adds no item.
    match = _ITEM.match(inner, start)
    assert match  # An item may be empty.
    item = match[1]
    if len(item) > 1 and item[0] in '"\'' and item[-1] == item[0]:
      item = item[1:-1]
    if not item:
      raise ValueError(f'item {len(items) + 1} of {text!r} is empty.')
    items.append(item)
    start = match.end()
  return tuple(items)


def _error_message(error: BaseException, file: str) -> str:
  """The message for an error of a config file: file, line and reason."""
  if isinstance(error, UserError):
    reason = str(error)
  else:
    text = str(error.code if isinstance(error, SystemExit) else error)
    if 'allow_dotted_keys' in text:
      text += ' Give a dict in place of that ConfigDict.'
    reason = _lookup_error(error, text) or ': '.join(
      filter(None, [type(error).__name__, text])
    )
  frames = [
    (frame.filename, frame.lineno, frame.line)
    for frame in traceback.extract_tb(error.__traceback__)
    if _is_own(frame.filename)
  ]
  if isinstance(error, SyntaxError):
    reason = f'{type(error).__name__}: {error.msg}'
    if error.filename and _is_own(error.filename):
      frames.append((error.filename, error.lineno, ''))
  if not frames:
    return _one_line(f'{file}: {reason}')
  name, line, code = frames[-1]
  if isinstance(error, AssertionError) and not str(error):
    reason += f' of `{code}`'
  where = f'{name}, line {line}'
  callers = [frame for frame in frames if os.path.samefile(frame[0], file)]
  if callers and not os.path.samefile(name, file):
    where += f' (from {file}, line {callers[-1][1]})'
  return _one_line(f'{where}: {reason}')


def _lookup_error(error: BaseException, text: str) -> str:
  """A message for an option that a `ConfigDict` lacks; '' for other errors."""
  frames = traceback.extract_tb(error.__traceback__)
  is_lookup = isinstance(error, AttributeError | KeyError)
  if not is_lookup or 'ml_collections' not in frames[-1].filename:
    return ''
  # It quotes the text of one error in another.
  name = re.search(r"'([^']+)'", text.replace('\\', ''))
  near = re.search(r'Did you mean "(.+?)"', text)
  hint = f' Did you mean {near[1]!r}?' if near else ''
  return f'there is no option {name[1]!r}.{hint}' if name else ''


def _is_own(name: str) -> bool:
  """Whether a file is the user's, not of Python, a library or this package."""
  path = os.path.realpath(name)
  return os.path.isfile(path) and not path.startswith(_LIBRARIES)


def _unknown_option(argv: Sequence[str]) -> str:
  """A message for the first `--config.a.b` that the config lacks, or ''."""
  for argument in argv:
    match = re.match(r'--?config\.([^=]+)', argument)
    if match:
      parser: Any = flags.FLAGS['config'].parser
      reason = missing_option(parser.config, match[1])
      if reason:
        return f'{match[0]}: {reason}'
  return ''


def missing_option(config: Any, name: str) -> str:
  """What a config lacks of an option such as 'a[0].b'; '' if it has it."""
  keys = re.sub(r'(\[\w*\])', r'.\1', name).split('.')
  node = config
  above = 'config'
  for key in keys:
    if key.startswith('['):
      if not isinstance(node, tuple | list):
        return f'{above} has no entries: leave out {key}.'
      if not key[1:-1].isdecimal() or int(key[1:-1]) >= len(node):
        return f'{above} has {len(node)} entries, from [0], and none at {key}.'
      node, above = node[int(key[1:-1])], f'{above}{key}'
      continue
    if not hasattr(node, 'keys'):
      return f'{above} is a value, and has no options in it.'
    names = sorted(node.keys())
    if key not in names:
      return (
        f'{above} has no option {key!r}; it has '
        f'{", ".join(names) or "none"}.{did_you_mean(key, names)}'
      )
    node, above = node[key], f'{above}.{key}'
  if keys[-1].startswith('['):
    return f'{above} is part of a value: set all of it.'
  return ''


def _chain(error: BaseException) -> Iterator[BaseException]:
  cause: BaseException | None = error
  while cause is not None:
    yield cause
    cause = cause.__cause__ or cause.__context__


def _one_line(text: str) -> str:
  # ml_collections gives its KeyError as the text of another error.
  return ' '.join(text.replace('\\n', ' ').split())
