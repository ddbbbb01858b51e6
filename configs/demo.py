r"""Does pruning by information pay where machines wrote most of the text?

Command: python -m infoprune_jax.main --config=configs/demo.py
Expect: under 12 minutes and 4 GB on a 2-core CPU, installation included.
Another draw of files: --config.corpus.seed=1 --workdir=runs/demo-1
With 38 % of generated tokens: --workdir=runs/demo-less \
    --config.corpus.sources.generated_mlir.max_bytes=1000000 \
    --config.corpus.sources.generated_protobuf.max_bytes=800000

The corpus is what `make install` puts on the disk, read in place. Two code
generators wrote two thirds of the tokens. The rest is eleven kinds of files
that people wrote, 200 kB of each, and the hashes of pip's RECORD files. The
question is how well a small model predicts what people wrote, if it is trained
on 40 % of the tokens.
"""

import dataclasses
import glob
import importlib.metadata
import os
import sysconfig

from ml_collections import ConfigDict

from configs import base
from infoprune_jax.config.validation import UserError

NLL = 'nll_sum / num_bytes'
_WRITTEN_BYTES = 200_000  # of each kind of file that people wrote
_WRITTEN_LONGEST, _GENERATED_LONGEST = 6_000, 48_000  # bytes of a file


@dataclasses.dataclass(frozen=True)
class Files:
  """Files of installed packages: globs below their folder, and limits."""

  packages: tuple[str, ...]  # as pip calls them; () for all of them
  globs: tuple[str, ...]
  max_bytes: int = _WRITTEN_BYTES
  longest: int = _WRITTEN_LONGEST
  folder: str = 'purelib'  # as `sysconfig` calls it

  @property
  def paths(self) -> list[str]:
    """The globs, with the folder that they are below."""
    root = sysconfig.get_path(self.folder)
    return [os.path.join(root, name) for name in self.globs]

  @property
  def num_bytes(self) -> int:
    """How much there is of these files, but not more than is read."""
    matches = {
      path for name in self.paths for path in glob.glob(name, recursive=True)
    }
    sizes = (os.path.getsize(path) for path in matches if os.path.isfile(path))
    return min(
      self.max_bytes, sum(size for size in sizes if size <= self.longest)
    )


_INCLUDE = 'tensorflow/include'
WRITTEN = {
  # Without the tables of encodings, tests and installed packages.
  'python_stdlib': Files(
    (),
    ('*.py', '[!eilst]*/*.py', 'email/*.py', 'importlib/*.py'),
    folder='stdlib',
  ),
  'jax_source': Files(('jax',), ('jax/**/*.py',)),
  # A folder in p, portability, holds generated code.
  'beam_source': Files(('apache-beam',), ('apache_beam/[!p]*/**/*[!2].py',)),
  'keras_source': Files(('keras',), ('keras/src/**/*.py',)),
  'scipy_tests': Files(('scipy',), ('scipy/**/tests/*.py',)),
  'type_stubs': Files(
    ('numpy', 'scipy', 'matplotlib', 'jaxlib'),
    tuple(f'{p}/**/*.pyi' for p in ('numpy', 'scipy', 'matplotlib', 'jaxlib')),
  ),
  'cpp_headers': Files(
    ('pyarrow', 'tensorflow'),
    ('pyarrow/include/**/*.h', f'{_INCLUDE}/absl/**/*.h'),
  ),
  'cython': Files(
    ('pyarrow', 'scipy', 'numpy', 'apache-beam'),
    (
      'pyarrow/**/*.p[xy][dx]',
      *('pyarrow/**/*.pxi', 'scipy/**/*.pxd', 'numpy/**/*.pxd'),
      *('apache_beam/**/*.pxd', 'apache_beam/**/*.pyx'),
    ),
  ),
  'package_metadata': Files((), ('*.dist-info/METADATA',)),
  'protos': Files(
    ('googleapis-common-protos', 'tensorboardX', 'orbax-checkpoint'),
    tuple(f'{p}/**/*.proto' for p in ('google', 'tensorboardX', 'orbax')),
  ),
  'licences': Files(
    (),
    (
      '*.dist-info/LICENSE*',
      '*.dist-info/licenses/*',
      '*.dist-info/licenses/*/LICENSE*',
    ),
  ),
}
GENERATED = {
  'generated_mlir': Files(
    ('tensorflow',),
    (f'{_INCLUDE}/external/llvm-project/mlir/**/*.inc',),
    max_bytes=3_900_000,
    longest=_GENERATED_LONGEST,
  ),
  'generated_protobuf': Files(
    ('tensorflow',),
    (f'{_INCLUDE}/**/*.pb.h',),
    max_bytes=3_200_000,
    longest=_GENERATED_LONGEST,
  ),
}
HASHES = {'records': Files((), ('*.dist-info/RECORD',), 150_000)}


def get_config() -> ConfigDict:
  """Five arms, three seeds, models of 0.23M parameters."""
  _check_installed()
  config = base.get_config()
  for name, files in {**WRITTEN, **GENERATED, **HASHES}.items():
    config.corpus.sources[name] = base.text(
      *files.paths,
      max_document_bytes=files.longest,
      max_bytes=files.max_bytes,
    )
  config.corpus.on_bad_record = 'drop'  # Empty files, such as __init__.py.
  config.corpus.reference_fraction = 0.15
  config.corpus.heldout_fraction = 0.15
  config.corpus.num_shards = 4
  config.vocabulary.size = 2048
  config.vocabulary.type = 'bpe'  # 'unigram' trains for half a minute.
  config.vocabulary.train_bytes = 500_000
  _set_models(config)
  config.select.arms = ConfigDict(
    dict(
      full=base.arm('all'),
      random=base.arm('random', fraction=0.4),
      top_nll=base.arm('top', NLL, fraction=0.4),
      soft_compression=_likelier(base.COMPRESSION),
      longer=base.arm('all_plus_reference'),
    ),
    sort_keys=False,  # The report shows arms in this order.
  )
  config.train.seeds = (0, 1, 2)
  config.report.kinds = {
    'written': tuple(WRITTEN),
    'generated': tuple(GENERATED),
    'hashes': tuple(HASHES),
  }
  config.report.target = ('written',)
  config.report.hypothesis = ('top_nll',)
  config.report.notes = (
    'The gain is for text that people wrote. Most bytes here are generated, so '
    'the mean loss over all bytes rises. With 38 % generated tokens in place '
    'of 69 %, top_nll gained nothing (one seed).',
  )
  return config


def _set_models(config: ConfigDict) -> None:
  """Shapes and training: 0.23M parameters, and 0.08M to score."""
  shapes = {2: (config.model, 64, 160), 1: (config.reference.model, 32, 96)}
  for depth, (model, width, mlp_width) in shapes.items():
    model.num_layers = model.scan_unroll = model.num_heads = depth
    model.num_kv_heads = depth
    model.embed_dim, model.mlp_dim = width, mlp_width
    model.loss_chunk_tokens = 256
  for training, steps in (
    (config.train.training, 700),
    (config.reference.training, 400),
  ):
    training.num_steps = steps
    training.batch_size, training.sequence_length = 8, 128
    training.optimizer, training.learning_rate = 'muon', 0.015
    training.warmup_steps = steps // 10
    training.log_every, training.eval_every = 10, steps // 8
    training.checkpoint_every = steps // 2
  for scoring in (config.score, config.evaluate.scoring):
    scoring.per_device_batch_size, scoring.sequence_length = 8, 128
    scoring.window_overlap = 16
  config.evaluate.online_eval_tokens = 10_000


def _likelier(score: str) -> ConfigDict:
  """Draws few of the easiest, most of the rest, some of the very hardest."""
  rank = f'rank({score}, num_tokens)'
  weight = (
    f'case when {rank} < 0.6 then 0.1 when {rank} < 0.93 then 1.0 else 0.3 end'
  )
  return base.arm('sample', f'ln({weight})', fraction=0.4)


def _check_installed() -> None:
  """Raises `UserError` unless there are the files that the demo needs."""
  missing = [
    name
    for name in ('tensorflow', 'apache-beam')
    if not list(importlib.metadata.distributions(name=name))
  ]
  if missing:
    raise UserError(
      f'The demo reads the files of {" and ".join(missing)}, which the extras '
      "seqio and beam install: run `pip install 'infoprune_jax[seqio,beam]'`, "
      'or `make install`.'
    )
  for kind, sources, least in (
    ('generated', GENERATED, 7_000_000),
    ('written', WRITTEN, 2_000_000),
  ):
    sizes = {name: files.num_bytes for name, files in sources.items()}
    if sum(sizes.values()) >= least:
      continue
    short = max(sizes, key=lambda name: sources[name].max_bytes - sizes[name])
    packages = [
      f'{name} {importlib.metadata.version(name)}'
      for name in sources[short].packages
    ]
    raise UserError(
      f'The demo needs {least / 1e6:g} MB of {kind} files, found '
      f'{sum(sizes.values()) / 1e6:.1f} MB. Most is missing in {short}, '
      f'{sizes[short] / 1e6:.1f} MB in {", ".join(packages) or "all packages"}: '
      'install the versions in constraints.txt, as `make install` does.'
    )
