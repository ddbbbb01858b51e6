r"""The whole job in seconds, on a few files of the environment: for tests.

Command: python -m infoprune_jax.main --config=configs/tiny.py
Expect: well under a minute on a 2-core CPU; the losses mean nothing.
"""

import sysconfig

from ml_collections import ConfigDict

from configs import base, baselines


def get_config() -> ConfigDict:
  """Three arms, each with a few steps of a model of 30k parameters."""
  config = base.get_config()
  packages = sysconfig.get_path('purelib')
  config.corpus.sources.stubs = base.text(f'{packages}/numpy/**/*.pyi')
  config.corpus.sources.metadata = base.text(f'{packages}/*.dist-info/METADATA')
  config.corpus.on_bad_record = 'drop'  # Empty files: __init__.py.
  config.corpus.max_bytes_per_source = 120_000
  config.corpus.heldout_fraction = 0.3
  config.corpus.num_shards = 2
  config.corpus.num_workers = 1
  config.vocabulary.size = 512
  config.vocabulary.type = 'bpe'
  for model in (config.model, config.reference.model):
    model.num_layers = 2
    model.embed_dim = 32
    model.mlp_dim = 64
    model.num_heads = 2
    model.num_kv_heads = 1
    model.head_dim = 16
    model.loss_chunk_tokens = 256
  for training in (config.train.training, config.reference.training):
    training.num_steps = 12
    training.warmup_steps = 2
    training.batch_size = 8
    training.sequence_length = 64
    training.log_every = 3
    training.eval_every = 6
    training.checkpoint_every = 5
  for scoring in (config.score, config.evaluate.scoring):
    scoring.per_device_batch_size = 8
    scoring.sequence_length = 64
    scoring.window_overlap = 16
  config.evaluate.online_eval_tokens = 2_000
  config.select.arms.top_nll = baselines.information(fraction=0.5).top_nll
  return config
