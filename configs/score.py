r"""Scores every document of a corpus with a model from elsewhere.

Command: python -m infoprune_jax.main --config=configs/score.py \
    --workdir=runs/mine --config.corpus.sources.mine.paths='data/*.jsonl.zst' \
    --config.reference.checkpoint.path=runs/big/train/full/seed-0
Expect: one forward pass over the corpus; no model is trained.

Lines look like {"id": "news/17", "text": "...", "source": "news"}. The text is
tokenized with the vocabulary of the model. `--job=loss` keeps nothing but the
losses of each source.
"""

from ml_collections import ConfigDict

from configs import base, baselines


def get_config() -> ConfigDict:
  """No reference and no held-out split: all text is scored."""
  config = base.get_config()
  config.corpus.sources.mine = base.jsonl(
    'data/*.jsonl.zst', id_column='id', source_column='source'
  )
  # Arms cost nothing until they are trained.
  config.select.arms.update(baselines.information(fraction=0.5))
  config.corpus.reference_fraction = 0.0
  config.corpus.heldout_fraction = 0.0
  # Set the length to that of the sequences that the model was trained on.
  config.score.sequence_length = 1024
  config.score.window_overlap = 256
  return config
