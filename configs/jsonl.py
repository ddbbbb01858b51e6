r"""Five arms on a JSONL corpus of one's own, on a CPU.

Command: python -m infoprune_jax.main --config=configs/jsonl.py \
    --workdir=runs/mine --config.corpus.sources.mine.paths='data/*.jsonl.zst'
Expect: about 20 minutes on a 2-core CPU for 9 MB of text.

Records look like {"id": "news/17", "text": "...", "source": "news"}. Of each
source, whole documents are drawn up to `max_bytes_per_source`; set it to 0 to
use everything.
"""

from ml_collections import ConfigDict

from configs import base, baselines


def get_config() -> ConfigDict:
  """Two seeds, models of 0.5M parameters, 0.5M tokens per arm."""
  config = base.get_config()
  config.select.arms.update(baselines.information(fraction=0.5))
  config.corpus.sources.mine = base.jsonl(
    'data/*.jsonl.zst', id_column='id', source_column='source'
  )
  config.corpus.max_bytes_per_source = 150_000
  config.vocabulary.size = 4096
  for model in (config.model, config.reference.model):
    model.num_layers = 2
    model.embed_dim = 96
    model.mlp_dim = 256
    model.num_heads = 3
    model.num_kv_heads = 3
    model.loss_chunk_tokens = 256
    model.scan_unroll = 2
  for training in (config.train.training, config.reference.training):
    training.num_steps = 260
    # Small models gain more from more steps than from larger batches.
    training.batch_size = 8
    training.warmup_steps = 26
    training.log_every = 10
    training.eval_every = 52
    training.checkpoint_every = 130
  return config
