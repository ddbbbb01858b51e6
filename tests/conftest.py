"""Eight CPU devices, strict types, and a small corpus of made-up text."""

import atexit
import os
import shutil
import signal
import tempfile

from jaxlib.version import __version_info__ as jaxlib_version

# Before anything imports JAX. Tests compile much and compute little: without
# the emitters of fusions through MLIR, compiling takes half the time. Of a flag
# that is given twice the last counts. A flag that XLA does not know ends the
# process without a word: jaxlib 0.11 has no other emitters left to choose.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
    *(
      ['--xla_cpu_use_fusion_emitters=false']
      if jaxlib_version < (0, 11)
      else []
    ),
  ]
)
# A shell gives background jobs an ignored SIGINT, which the processes that
# tests start would inherit: they would not hear the SIGINT that a test sends.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
# JAX_PLATFORMS=cuda runs what needs a GPU, too.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Tests, and the processes they start, compile the same programs over again.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  compiled = tempfile.mkdtemp(prefix='compiled-')
  atexit.register(shutil.rmtree, compiled, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = compiled
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '0'

import hypothesis
import pytest
from jaxtyping import install_import_hook

with install_import_hook('infoprune_jax.model', 'beartype.beartype'):
  import infoprune_jax.model.attention
  import infoprune_jax.model.losses
  import infoprune_jax.model.network  # noqa: F401

from small_corpus import small_config, write_corpus

from infoprune_jax.config import experiment as config_lib

pytest_plugins = ('tiny_corpora', 'three_arms')
# Times are noisy, and what is compiled first is slow once.
hypothesis.settings.register_profile('tests', deadline=None)
hypothesis.settings.load_profile('tests')

# Drills: the whole job is killed, damaged, short of disk, begun again, on several
# hosts and on an object store. They take minutes: see `make test-drills`.
DRILLS = (
  'tests/test_stages.py',
  'tests/train/test_hosts.py',
  'tests/train/test_eight_hosts.py',
  'tests/score/test_hosts.py',
  'tests/score/test_eight_hosts.py',
  'tests/test_damage.py',
  'tests/test_redo.py',
  'tests/test_disk.py',
  'tests/test_object_store.py',
  'tests/test_under_fire.py',
  'tests/test_tools.py',
  'tests/tools/test_docker_install.py',
  'tests/tools/test_launch_script.py',
)
# Other modules of half a minute and more.
LONG = (
  'tests/score/test_hub_names.py',
  'tests/evaluate/test_tasks.py',
  'tests/config/test_fuzz_configs.py',
  'tests/train/test_runs.py',
  'tests/train/test_state.py',
  'tests/test_main.py',
  'tests/test_golden_workdir.py',
  'tests/export/test_job.py',
  'tests/evaluate/test_labels.py',
  'tests/score/test_score_only.py',
  'tests/test_planned.py',
  'tests/model/test_attention.py',
  'tests/train/test_optimizer.py',
  'tests/train/test_loop.py',
  'tests/score/test_references.py',
  'tests/corpus/test_tensorflow_sources.py',
  'tests/model/test_partitioning.py',
  'tests/model/test_network.py',
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Long modules first, and marked; see `make test` and `make test-newest`.

  Two workers then end together.
  """
  places = {name: place for place, name in enumerate((*DRILLS, *LONG))}
  items.sort(
    key=lambda item: places.get(item.nodeid.partition('::')[0], len(places))
  )
  for item in items:
    module = item.nodeid.partition('::')[0]
    if module in places:
      item.add_marker('slow')
    if module in DRILLS:
      item.add_marker('drill')


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption(
    '--refresh-goldens',
    action='store_true',
    help='Rewrite tests/golden/ from what the code gives now.',
  )
  parser.addoption(
    '--num-kills',
    type=int,
    default=10,
    help='How often tests/test_stages.py kills the job.',
  )
  parser.addoption(
    '--fire-seeds',
    type=int,
    default=0,
    help='The last seed of tests/test_under_fire.py; 0 for none.',
  )
  parser.addoption(
    '--fire-first',
    type=int,
    default=1,
    help='The first seed of tests/test_under_fire.py.',
  )


@pytest.fixture(scope='session')
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> str:
  """The made-up corpus."""
  path = tmp_path_factory.mktemp('corpus') / 'corpus.jsonl'
  write_corpus(path)
  return str(path)


@pytest.fixture(scope='session')
def small(corpus_path: str) -> config_lib.Config:
  """A config that tokenizes, trains and scores in seconds."""
  return config_lib.from_mapping(small_config(corpus_path))


@pytest.fixture(scope='session')
def store_workdir(small, tmp_path_factory) -> str:
  """A workdir with the token store of the made-up corpus."""
  from infoprune_jax.tokens import tokenize

  workdir = str(tmp_path_factory.mktemp('store'))
  tokenize.run(small, workdir)
  return workdir


@pytest.fixture(scope='session')
def store(store_workdir):
  """That token store, opened."""
  from infoprune_jax.tokens.token_store import TokenStore

  return TokenStore.open(store_workdir)
