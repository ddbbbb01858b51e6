"""Configs: what loads, and what is refused in which words."""

import copy
import dataclasses
import importlib
import pathlib
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest
from plain_configs import edited, edits_of, plain, value_at

from configs import base
from infoprune_jax.config import (
  corpus as corpus_config,
  experiment as config_lib,
  selection as rule_config,
  validation,
)
from infoprune_jax.config.validation import UserError
from infoprune_jax.runtime.options import recorded

FOLDER = pathlib.Path(base.__file__).parent
# Presets are parts of an experiment. tests/test_experiment_cells.py has others.
OTHERS = {'baselines', 'models', 'experiment', 'natural_texts'}
NAMES = sorted({path.stem for path in FOLDER.glob('[!_]*.py')} - OTHERS)
# One value of every JSON type, and what ConfigDict makes of none.
VALUES = (True, 3, 0.5, 'text', None, {}, [])


def leaves(kind: Any, where: str = '') -> Iterator[tuple[str, Any]]:
  """The path and the type of each field that is no section."""
  for name, hint in get_type_hints(kind).items():
    path = f'{where}{name}'
    if dataclasses.is_dataclass(hint):
      yield from leaves(hint, f'{path}.')
    else:
      yield path, hint
    if path == 'corpus.sources':
      yield from leaves(get_args(hint)[1], f'{path}.mine.')
    if path == 'select.arms':
      yield from leaves(rule_config.RuleConfig, f'{path}.random.')


LEAVES = dict(leaves(config_lib.Config))
SCALARS = {path: kind for path, kind in LEAVES.items() if type(kind) is type}
COLLECTIONS = sorted(LEAVES.keys() - SCALARS.keys())


@pytest.mark.parametrize('name', NAMES)
def test_every_config_loads(name):
  loaded = config_lib.from_mapping(edits_of(name))
  assert loaded.arms
  assert config_lib.from_mapping(validation.to_plain(loaded)) == loaded


@pytest.mark.parametrize('name', sorted({*NAMES} - {'base'}))
def test_every_config_says_how_to_run_it(name):
  text = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in text
  assert 'Expect: ' in text


def test_base_has_exactly_the_fields():
  def check(kind: Any, value: Any, where: str) -> None:
    names = {field.name for field in dataclasses.fields(kind)}
    assert set(value) == names, where
    for name, hint in get_type_hints(kind).items():
      if dataclasses.is_dataclass(hint):
        check(hint, value[name], f'{where}.{name}')

  edits = edits_of('base')
  check(config_lib.Config, edits, 'config')
  for source in (base.text('a'), base.jsonl('a')):
    check(corpus_config.SourceConfig, source, 'source')
  for arm in edits.select.arms.values():
    check(rule_config.RuleConfig, arm, 'arm')


def test_plain_configs_are_not_shared():
  first = edits_of('base')
  before = copy.deepcopy(first.to_dict())
  first.model.num_layers = 99
  assert edits_of('base').to_dict() == before


def test_order_of_arms_and_sources_is_kept():
  edits = edits_of('base')
  edits.corpus.sources.a = base.text('a')
  loaded = config_lib.from_mapping(edits)
  assert tuple(loaded.corpus.sources) == ('mine', 'a')
  assert loaded.arms == ('full', 'random')


def test_an_arm_of_several_rules():
  value = plain()
  rule = value['select']['arms']['random'][0]
  value['select']['arms']['two'] = [rule, {**rule, 'fraction': 0.25}]
  fractions = [
    rule.fraction for rule in config_lib.from_mapping(value).select.arms['two']
  ]
  assert fractions == [0.5, 0.25]


@pytest.mark.parametrize('path', SCALARS)
def test_a_value_of_another_type_is_refused(path):
  kind = SCALARS[path]
  for value in VALUES:
    if type(value) is kind or (kind is float and type(value) is int):
      continue
    with pytest.raises(UserError) as caught:
      config_lib.from_mapping(edited(path, value))
    assert f'config.{path}: expected {kind.__name__}, got {value!r}' in str(
      caught.value
    )


def test_an_int_is_a_float():
  loaded = config_lib.from_mapping(edited('train.training.weight_decay', 0))
  assert type(loaded.train.training.weight_decay) is float


@pytest.mark.parametrize('path', COLLECTIONS)
@pytest.mark.parametrize('value', [3, None, True])
def test_what_is_no_collection_is_refused(path, value):
  with pytest.raises(UserError, match=path.rsplit('.', 1)[-1]):
    config_lib.from_mapping(edited(path, value))


@pytest.mark.parametrize('path', ['train.arms', 'train.seeds'])
def test_a_string_is_no_tuple(path):
  with pytest.raises(UserError, match=path):
    config_lib.from_mapping(edited(path, 'text'))


@pytest.mark.parametrize(
  'path', ['corpus.sources.mine.paths', 'corpus.sources', 'select.arms']
)
def test_a_string_is_no_collection(path):
  with pytest.raises(UserError, match=path):
    config_lib.from_mapping(edited(path, 'text'))


@pytest.mark.parametrize(
  'path', ['corpus', 'reference.training', 'corpus.sources.mine', 'mesh']
)
@pytest.mark.parametrize('value', [3, None, 'text', ()])
def test_what_is_no_section_is_refused(path, value):
  with pytest.raises(
    UserError, match=rf'In config\.{path}: expected a section'
  ):
    config_lib.from_mapping(edited(path, value))


@pytest.mark.parametrize(
  'path, near',
  [
    ('corpus.num_shard', 'num_shards'),
    ('train.training.learning_rat', 'learning_rate'),
    ('corpus.sources.mine.text_colum', 'text_column'),
    ('select.arms.random.fracton', 'fraction'),
    ('models', 'model'),
  ],
)
def test_an_unknown_key_names_the_nearest(path, near):
  with pytest.raises(UserError, match=f'Did you mean {near!r}') as caught:
    config_lib.from_mapping(edited(path, 1))
  section = path.rpartition('.')[0]
  assert f'config.{section}'.rstrip('.') in str(caught.value)


def test_missing_keys_are_named():
  value = plain()
  del value['model']['head_dim'], value['model']['num_layers']
  missing = r'In config\.model: num_layers, head_dim missing'
  with pytest.raises(UserError, match=missing):
    config_lib.from_mapping(value)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_left_out_has_its_default(name):
  loaded = config_lib.from_mapping(edits_of(name))
  short = recorded(loaded)
  assert 'mesh' not in short
  assert config_lib.from_mapping(short) == loaded


def test_a_choice_far_from_all_has_no_hint():
  with pytest.raises(UserError) as caught:
    config_lib.from_mapping(edited('select.arms.random.keep', 'zzz'))
  assert 'Did you mean' not in str(caught.value)
  assert "'sample', 'repeat', 'random', 'distinct', 'all'" in str(caught.value)


NAN = float('nan')
REFUSED = [
  ('corpus.sources.mine.format', 'json', "mean 'jsonl'"),
  ('corpus.sources.mine.paths', [], r'source\.paths is empty'),
  ('corpus.sources.mine.text_column', '', r'source\.text_column is empty'),
  ('corpus.sources.mine.max_bytes', -1, r'source\.max_bytes must be in'),
  ('corpus.sources', {}, r'corpus\.sources is empty: add one'),
  ('corpus.on_bad_record', 'refused', "mean 'refuse'"),
  (
    'corpus.reference_fraction',
    1.5,
    r'must leave documents to score, got 1\.5',
  ),
  ('corpus.reference_fraction', NAN, r'reference_fraction must be in \[0, 1'),
  ('corpus.heldout_fraction', -0.1, r'heldout_fraction must be in \[0, 1'),
  (
    'corpus.heldout_fraction',
    0.75,
    r'must leave documents to score, got 0\.25',
  ),
  ('corpus.max_bytes_per_source', -1, 'max_bytes_per_source must be in'),
  ('corpus.num_workers', -1, r'num_workers must be in \[0, 4096\]'),
  ('corpus.num_shards', 0, r'corpus\.num_shards must be positive, got 0'),
  ('vocabulary.type', 'bpee', "mean 'bpe'"),
  ('labels.text_column', '', r'labels\.text_column is empty'),
  ('labels.label_column', '', r'labels\.label_column is empty'),
  ('labels.scores', {}, r'labels\.scores is empty: name a score'),
  ('labels.scores', {'mine': ' '}, "labels.scores: 'mine' is ' ': give"),
  ('labels.bootstrap_samples', 0, 'bootstrap_samples must be positive'),
  ('vocabulary.size', 319, r'vocabulary\.size must be in \[320,'),
  ('vocabulary.train_bytes', 0, 'train_bytes must be positive'),
  ('model.dtype', 'float16', "mean 'bfloat16'"),
  ('model.activation', 'swiglue', "mean 'swiglu'"),
  ('model.remat', 'minimum', "mean 'minimal'"),
  ('model.logit_softcap', -1.0, r'model\.logit_softcap must be in'),
  ('model.logit_softcap', NAN, r'model\.logit_softcap must be in'),
  ('model.num_layers', 0, r'model\.num_layers must be positive'),
  ('model.rope_theta', NAN, 'rope_theta must be positive'),
  ('model.num_kv_heads', 3, 'num_kv_heads must divide .* got 3 and 4'),
  ('model.head_dim', 7, 'head_dim must be even, got 7'),
  ('reference.model.head_dim', 7, r'config\.reference\.model: model\.head'),
  ('mesh.data', 0, 'must be positive, with -1 on at most one'),
  ('mesh.fsdp', -1, r'got \(-1, -1, 1, 1\)'),
  ('mesh.tensor', -2, 'mesh.tensor must be positive'),
  ('mesh.sequence', 0, 'mesh.sequence and mesh.tensor must be positive'),
  ('mesh.dcn_data', -1, r'mesh\.dcn_data must be positive, got -1'),
  ('mesh.rules', {'embed': 'fsdp'}, r'mesh\.rules\.embed: expected a tuple'),
  ('train.training.mixture', {'web': 0.0}, "'web' is 0.0 in every phase"),
  ('train.training.mixture', {'web': NAN}, r"training\.mixture, 'web' must be"),
  ('train.training.mixture', {'web': 1e10}, r'must be in \[1e-09, 1e\+09\]'),
  (
    'train.training.mixture_schedule',
    [{'from_step': 9, 'weights': {'web': 1.0}}],
    'changes training.mixture, which is empty',
  ),
  ('train.training.num_steps', 0, 'needs exactly one of num_steps, num_tokens'),
  ('train.training.num_steps', -1, r'training\.num_steps must be in'),
  (
    'train.training.num_tokens',
    7,
    'got num_steps=500, num_tokens=7, num_flops',
  ),
  ('train.training.num_flops', 1e18, r'num_flops=1e\+18: set the others to 0'),
  ('train.training.num_flops', NAN, r'training\.num_flops must be in'),
  (
    'train.training.gradient_accumulation_steps',
    3,
    r'must divide training\.batch_size, got 3 and 16',
  ),
  ('train.training.gradient_accumulation_steps', 0, 'steps must be positive'),
  ('train.training.z_loss', -1e-4, r'training\.z_loss must be in'),
  ('train.training.optimizer', 'adam', "mean 'adamw'"),
  ('train.training.schedule', 'cosin', "mean 'cosine'"),
  ('train.training.decay_fraction', 1.5, r'decay_fraction must be in \[0, 1\]'),
  ('train.training.learning_rate', -1.0, 'learning_rate must be positive'),
  ('train.training.warmup_steps', 501, r'warmup_steps must be in \[0, 500\]'),
  ('train.training.beta1', 1.5, r'beta1 must be in \[0, 1\]'),
  ('train.training.beta2', NAN, r'beta2 must be in \[0, 1\]'),
  ('train.training.final_learning_rate_ratio', 2.0, 'ratio must be in'),
  ('score.window_overlap', 256, r'got 256 at sequence_length 256'),
  ('score.window_overlap', -1, r'must be in \[0, sequence_length\)'),
  ('score.dtype', 'int8', r'scoring\.dtype must be one of'),
  (
    'evaluate.scoring.per_device_batch_size',
    0,
    'per_device_batch_size must be positive',
  ),
  ('select.arms.random.keep', 'tpo', "mean 'top'"),
  ('select.arms.random.unit', 'byte', "mean 'bytes'"),
  ('select.arms.random.fraction', 0.0, r'fraction must be in \(0, 1\]'),
  ('select.arms.random.fraction', 1.01, r'got 1\.01'),
  ('select.arms.random.fraction', NAN, r'got nan'),
  (
    'select.arms.blank',
    [{**plain()['select']['arms']['random'][0], 'keep': 'top', 'score': ' '}],
    "keep='top' ranks by it",
  ),
  ('select.arms.none', [], r'select\.arms\.none has no rule'),
  ('select.arms.a-b', [plain()['select']['arms']['random'][0]], "'a-b' must"),
  ('select.arms', {}, r'report\.baseline must be one of'),
  ('train.arms', ['rnadom'], "mean 'random'"),
  ('train.seeds', [], r'train\.seeds must be distinct, got \(\)'),
  ('train.seeds', [1, 2, 1], r'got \(1, 2, 1\)'),
  ('evaluate.online_eval_tokens', 0, 'online_eval_tokens must be positive'),
  ('report.baseline', 'randon', "mean 'random'"),
  ('report.bootstrap_samples', 0, 'bootstrap_samples must be positive'),
  ('report.num_examples', 0, 'num_examples must be positive'),
  ('report.kinds', {'code': ()}, r"report\.kinds: 'code' is \(\): give a name"),
  ('report.kinds', {'code': ('a', '')}, r"'code' is \('a', ''\)"),
  ('report.kinds', {' ': ('a',)}, r"report\.kinds: ' ' is"),
  ('report.kinds', {'code': 'a'}, r'kinds\.code: expected a tuple, got .a.'),
  ('report.measure', 'marco', "mean 'macro'"),
  ('report.target', ['code', ' '], 'with an empty name: give kinds'),
  ('report.hypothesis', ['fulll'], "hypothesis must be .* mean 'full'"),
  ('report.hypothesis', ['random'], 'which is report.baseline'),
]


@pytest.mark.parametrize('path, value, message', REFUSED)
def test_out_of_range(path, value, message):
  with pytest.raises(UserError, match=message):
    config_lib.from_mapping(edited(path, value))


@pytest.mark.parametrize(
  'path, value',
  [
    ('corpus.num_workers', 0),
    ('model.num_kv_heads', 4),
    ('model.logit_softcap', 30),
    ('mesh.tensor', 4),
    ('train.training.warmup_steps', 500),
    ('score.window_overlap', 255),
    ('score.window_overlap', 0),
    ('select.arms.random.fraction', 1),
    ('train.seeds', [7]),
    ('train.arms', ['random', 'full']),
  ],
)
def test_bounds_that_are_allowed(path, value):
  loaded = validation.to_plain(config_lib.from_mapping(edited(path, value)))
  assert value_at(loaded, path) == value


@pytest.mark.parametrize(
  'path, value',
  [
    ('corpus.seed', -1),
    ('select.arms.random.seed', -1),
    ('train.training.weight_decay', NAN),
    ('train.training.learning_rate', float('inf')),
    ('train.arms', ['random', 'random']),
  ],
)
def test_values_that_no_stage_can_use(path, value):
  with pytest.raises(UserError, match=path.rsplit('.', 1)[-1]):
    config_lib.from_mapping(edited(path, value))


def test_arms_of_a_run():
  assert config_lib.from_mapping(plain()).arms == tuple(
    plain()['select']['arms']
  )
  some = edited('train.arms', ['random', 'full'])
  assert config_lib.from_mapping(some).arms == ('random', 'full')


@pytest.mark.parametrize(
  'statistics, message',
  [
    (
      ('entropie',),
      "'entropie' is none of entropy, greedy, error_norm, nll_fi",
    ),
    (('nll',), "'nll' is none of"),
    (('nll_first_0',), "'nll_first_0' is none of"),
    (('nll_first_K',), 'with a number of tokens for K, such as nll_first_32'),
    (('nll_last_',), "'nll_last_' is none of"),
    (('greedy', 'greedy'), 'must be distinct'),
  ],
)
def test_a_statistic_that_there_is_not(statistics, message):
  with pytest.raises(UserError, match=message):
    config_lib.from_mapping(edited('score.statistics', statistics))


def test_columns_of_statistics():
  names = ('nll_last_8', 'greedy')
  config = config_lib.from_mapping(edited('score.statistics', names))
  assert config.score.token_statistics == ('nll', 'greedy')
  assert config.score_columns == ['nll_sum', 'nll_last_8_sum', 'greedy_sum']
  assert config.score.columns(['nll_sum', 'nll_sum_b'])[3:] == [
    'nll_sum_b',
    'nll_last_8_sum_b',
    'greedy_sum_b',
  ]
  with pytest.raises(UserError, match='held-out losses hold NLL only'):
    config_lib.from_mapping(edited('evaluate.scoring.statistics', names))


def test_held_out_losses_are_those_of_whole_documents():
  name = 'max_document_tokens'
  assert config_lib.from_mapping(edited(f'score.{name}', 64))
  with pytest.raises(UserError, match='of whole documents: leave it at 0'):
    config_lib.from_mapping(edited(f'evaluate.scoring.{name}', 64))
