r"""The main job on text that any installation has on its disk, in minutes.

Command: python -m infoprune_jax.main --config=configs/demo.py
Expect: under 6 minutes and 4 GB on a 2-core CPU.

The corpus is the source, stubs, headers, metadata, licences and generated code
of this Python and of the packages this project needs, read where they lie. It
is redundant by nature, which is what pruning is about. The models are tiny and
see little: the run shows the path, not a result to quote.
"""

import sysconfig

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Five arms, two seeds, models of 0.2M parameters."""
  config = base.get_config()
  _set_sources(config.corpus.sources)
  config.corpus.on_bad_record = 'drop'  # Empty files, such as __init__.py.
  config.corpus.max_bytes_per_source = 500_000
  config.corpus.reference_fraction = 0.3
  config.corpus.heldout_fraction = 0.15
  config.corpus.num_shards = 4
  config.vocabulary.size = 2048
  config.vocabulary.train_bytes = 500_000
  for model in (config.model, config.reference.model):
    model.num_layers = 2
    model.embed_dim = 64
    model.mlp_dim = 192
    model.num_heads = 2
    model.num_kv_heads = 2
    model.loss_chunk_tokens = 256
    model.scan_unroll = 2
  for training in (config.train.training, config.reference.training):
    training.num_steps = 120
    training.batch_size = 8
    training.warmup_steps = 12
    training.learning_rate = 6e-3
    training.log_every = 5
    training.eval_every = 30
    training.checkpoint_every = 60
  config.reference.training.num_steps = 200
  config.evaluate.online_eval_tokens = 20_000
  return config


def _set_sources(sources: ConfigDict) -> None:
  library = sysconfig.get_path('stdlib')
  packages = sysconfig.get_path('purelib')
  sources.python_stdlib = base.text(
    f'{library}/*.py',
    *(
      f'{library}/{name}/*.py'
      for name in ('asyncio', 'email', 'encodings', 'importlib', 'json')
    ),
  )
  sources.jax_source = base.text(f'{packages}/jax/**/*.py')
  sources.orbax_source = base.text(f'{packages}/orbax/**/*.py')
  sources.type_stubs = base.text(f'{packages}/numpy/**/*.pyi')
  sources.cpp_headers = base.text(f'{packages}/pyarrow/include/**/*.h')
  sources.generated = base.text(
    f'{packages}/google/**/*_pb2.py', f'{packages}/tensorboardX/proto/*.py'
  )
  sources.package_metadata = base.text(f'{packages}/*.dist-info/METADATA')
  sources.licences = base.text(f'{packages}/*.dist-info/**/LICENSE*')
