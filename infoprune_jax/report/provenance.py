"""The origin of a page: corpus, config, versions, fingerprints."""

import importlib.metadata
import platform
import posixpath
from collections.abc import Mapping
from typing import Any

import infoprune_jax
from infoprune_jax.config.experiment import Config
from infoprune_jax.config.validation import to_plain
from infoprune_jax.report.selection.inputs import Selected

# The dependencies in pyproject.toml, and the main ones of theirs.
_PACKAGES = (
  'absl-py',
  'array-record',
  'datasketch',
  'duckdb',
  'etils',
  'flax',
  'fsspec',
  'grain',
  'jax',
  'jaxlib',
  'jaxtyping',
  'jinja2',
  'matplotlib',
  'ml-collections',
  'numba',
  'numpy',
  'optax',
  'orbax-checkpoint',
  'pyarrow',
  'safetensors',
  'scipy',
  'sentencepiece',
  'tensorboardX',
  'tensorstore',
  'tokenizers',
  'zstandard',
  'apache-beam',
  'seqio',
  'tensorflow',
  'tensorflow-datasets',
)


def gather(config: Config, workdir: str, selected: Selected) -> dict[str, Any]:
  """The origin of a page, as JSON values."""
  return {
    'name': posixpath.basename(workdir.rstrip('/')),
    'seeds': list(config.train.seeds),
    'corpus': _corpus(selected.store),
    'reference': {
      key: selected.scores['reference'][key]
      for key in ('num_params', 'step', 'tokens', 'flops')
    },
    'scoring': {
      key: selected.scores[key]
      for key in ('num_examples', 'num_tokens', 'flops')
    },
    'config': to_plain(config),
    'versions': _versions(),
    'fingerprints': selected.fingerprints,
  }


def _corpus(store: Mapping[str, Any]) -> dict[str, Any]:
  return {
    key: store[key]
    for key in (
      'num_documents',
      'num_tokens',
      'num_bytes',
      'splits',
      'vocab_size',
      'bad_records',
    )
  }


def _versions() -> dict[str, str]:
  """Versions on the machine that writes the report."""
  versions = {
    'infoprune_jax': infoprune_jax.__version__,
    'python': platform.python_version(),
    'platform': platform.platform(),
  }
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = 'not installed'
  return versions
