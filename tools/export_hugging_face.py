r"""Writes a trained model as a folder that transformers loads.

  python tools/export_hugging_face.py --run=runs/small/train/top_nll/seed-0
  --out=exported

The run may be any training run, a .safetensors file of tools/export_params.py,
or a model of Hugging Face. AutoModelForCausalLM and AutoTokenizer load the
folder. Where transformers and PyTorch are installed, the logits of both are
compared before this ends.
"""

import importlib.util
import sys

import numpy as np
from absl import app, flags, logging

from infoprune_jax.config.validation import UserError

_RUN = flags.DEFINE_string('run', None, 'The folder of a finished run.')
_STEP = flags.DEFINE_integer('step', -1, 'A kept step; -1 for the last.')
_OUT = flags.DEFINE_string('out', None, 'The folder to write.')
_VOCABULARY = flags.DEFINE_string('vocabulary', '', "'' for the model's own.")
_MAX_LENGTH = flags.DEFINE_integer(
  'max_length', 2048, 'max_position_embeddings, for models without a limit.'
)
flags.mark_flags_as_required(['run', 'out'])
TOLERANCE = 1e-4  # of logits, relative to their deviation


def export(run: str, step: int, out: str, vocabulary: str, length: int) -> None:
  """Writes the folder, and checks what it says.

  Raises:
    UserError: there is no such model, no family of Hugging Face has its
      options, or what was written computes something else.
  """
  from infoprune_jax.model.hugging_face import save
  from infoprune_jax.score.language_model import load_model

  model = load_model(run, step=step, vocabulary=vocabulary, max_length=64)
  save.save(out, model.model, model.params, model.vocabulary, length)
  again = load_model(out, max_length=64)
  text = 'The quick brown fox jumps over the lazy dog.'
  own, other = (
    m.score([text], per_token=True).token_nll for m in (model, again)
  )
  if not np.array_equal(own[0], other[0]):
    raise UserError(
      f'{out} does not compute what {run} does: NLL differs by up to '
      f'{np.abs(own[0] - other[0]).max():.1e} nats. Do not use it.'
    )
  if not all(map(importlib.util.find_spec, ('torch', 'transformers'))):
    print(
      f'{out} reads back as the same model. transformers or torch is not '
      'installed, so its logits were not compared.'
    )
    return
  _compare(out, again.vocabulary.encode(text), own[0])


def _compare(out: str, ids: np.ndarray, own: np.ndarray) -> None:
  """Compares NLL with those of transformers, after BOS."""
  import torch
  import transformers

  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    out, dtype=torch.float32
  ).eval()
  tokens = transformers.AutoTokenizer.from_pretrained(out)
  read = [tokens.bos_token_id, *ids.tolist()]
  with torch.no_grad():
    logits = theirs(torch.tensor([read])).logits[0, :-1]
  nll = torch.nn.functional.cross_entropy(
    logits, torch.tensor(read[1:]), reduction='none'
  ).numpy()
  difference = np.abs(nll - own).max()
  if difference > TOLERANCE * max(1.0, float(logits.std())):
    raise UserError(
      f'transformers computes another NLL of {out} than we do, by up to '
      f'{difference:.1e} nats. Do not use it.'
    )
  print(f'{out}: transformers gives the same NLL, to {difference:.1e} nats')


def main(_: list[str]) -> int:
  """Returns the exit code."""
  logging.set_verbosity(logging.WARNING)  # Orbax says much.
  try:
    export(
      _RUN.value,
      _STEP.value,
      _OUT.value,
      _VOCABULARY.value,
      _MAX_LENGTH.value,
    )
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  app.run(main)
