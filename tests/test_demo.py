"""The demo's config: what it needs to find, and its sources."""

import fnmatch
import importlib.metadata

import pytest

from configs import demo
from infoprune_jax.config import experiment
from infoprune_jax.config.validation import UserError


@pytest.fixture
def installed(monkeypatch):
  """Sets which packages there are, and how much is found of a source."""

  def use(packages=('tensorflow', 'apache-beam'), **sizes):
    monkeypatch.setattr(
      importlib.metadata,
      'distributions',
      lambda name: [name] if name in packages else [],
    )
    monkeypatch.setattr(
      importlib.metadata, 'version', lambda name: f'1.0-of-{name}'
    )
    found = {
      id(files): sizes.get(name, files.max_bytes)
      for group in (demo.WRITTEN, demo.GENERATED, demo.HASHES)
      for name, files in group.items()
    }
    monkeypatch.setattr(
      demo.Files, 'num_bytes', property(lambda files: found[id(files)])
    )

  return use


def test_all_is_found(installed):
  installed()
  config = experiment.from_mapping(demo.get_config())
  assert {kind for kind in config.report.kinds} >= set(config.report.target)
  for source in config.corpus.sources:
    kinds = [
      kind
      for kind, patterns in config.report.kinds.items()
      if any(fnmatch.fnmatch(source, pattern) for pattern in patterns)
    ]
    assert len(kinds) == 1
  assert len(demo.WRITTEN) == 11 and len(config.train.seeds) == 3


@pytest.mark.parametrize(
  'packages, named',
  [
    ((), 'tensorflow and apache-beam'),
    (('tensorflow',), 'the files of apache-beam'),
    (('apache-beam',), 'the files of tensorflow'),
  ],
)
def test_missing_extras_are_one_message(installed, packages, named):
  installed(packages)
  with pytest.raises(UserError, match=r'\[seqio,beam\]') as caught:
    demo.get_config()
  assert named in str(caught.value)


@pytest.mark.parametrize(
  'sizes, message',
  [
    (
      {'generated_mlir': 3_000_000},
      r'needs 7 MB of generated .* 6\.2 MB.* generated_mlir, 3\.0 MB in '
      r'tensorflow 1\.0-of-tensorflow: install',
    ),
    (
      {'keras_source': 10_000, 'protos': 100_000},
      r'needs 2 MB of written .* 1\.9 MB.* keras_source, 0\.0 MB in keras 1',
    ),
    ({'licences': 0, 'cython': 50_000}, 'licences, 0.0 MB in all packages'),
  ],
)
def test_too_little_text_names_the_package(installed, sizes, message):
  installed(**sizes)
  with pytest.raises(UserError, match=message):
    demo.get_config()
