"""Our models in lm-evaluation-harness, and its tasks on our models.

  python -m infoprune_jax.evaluate.harness --model infoprune
  --model_args pretrained=runs/small/train/top/seed-0 --tasks lambada_openai

takes the arguments of the harness's own command. From Python:
`lm_eval.simple_evaluate(model=InfopruneLM(load_model(path)), tasks=[...])`.
"""

# pyright: reportMissingImports=false
# `make install` leaves lm_eval out.

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from infoprune_jax.config.validation import UserError
from infoprune_jax.score import generation
from infoprune_jax.score.language_model import LanguageModel, load_model

# What a greedy text is asked for with; other arguments would change it.
_GREEDY = {'until', 'max_gen_toks', 'do_sample', 'temperature'}


@register_model('infoprune')
class InfopruneLM(TemplateLM):
  """A model of this package, as the harness calls it.

  Requests are packed and spread over all devices, so `batch_size` and `device`
  say nothing.
  Where a job has several processes, each gets all requests and all results.
  """

  max_gen_toks = 256  # unless a task asks for another number

  def __init__(
    self,
    pretrained: str | LanguageModel,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
    **options: Any,
  ):
    """Loads a model.

    Args:
      pretrained: A path, as for `load_model`, or a model that is loaded.
      batch_size: The harness gives it. It says nothing.
      max_batch_size: Likewise.
      device: Likewise. JAX chooses, by JAX_PLATFORMS.
      **options: Of `load_model`: `max_length`, `dtype`, `adds_bos`, ...

    Raises:
      UserError: as `load_model`.
    """
    del batch_size, max_batch_size, device
    super().__init__()
    if isinstance(pretrained, str):
      pretrained = load_model(pretrained, **options)
    self.language_model = pretrained

  @property
  def eot_token_id(self) -> int:
    """EOS."""
    return self.language_model.vocabulary.eos_id

  @property
  def prefix_token_id(self) -> int:
    """BOS: what an empty context is."""
    return self.language_model.vocabulary.bos_id

  @property
  def max_length(self) -> int:
    """Tokens that the model takes at once."""
    return self.language_model.scoring.sequence_length

  @property
  def tokenizer_name(self) -> str:
    """For the harness's cache of requests."""
    return self.language_model.vocabulary.hash

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    """The tokens of a text, after BOS if the model's contexts have it."""
    del kwargs
    adds = self.language_model.adds_bos
    if add_special_tokens is not None:
      adds = add_special_tokens
    ids = self.language_model.vocabulary.encode(string).tolist()
    return [self.prefix_token_id] * adds + ids

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """Of each (context, continuation): log-probability, and whether greedy."""
    del disable_tqdm
    pairs = [request.args for request in requests]
    scored = self.language_model.continuations(pairs)
    answers = [(-one.nll, one.is_greedy) for one in scored]
    for pair, answer in zip(pairs, answers, strict=True):
      self.cache_hook.add_partial('loglikelihood', pair, answer)
    return answers

  def _loglikelihood_tokens(
    self,
    requests: Sequence[tuple[Any, list[int], list[int]]],
    **kwargs: Any,
  ) -> list[tuple[float, bool]]:
    del kwargs
    scored = self.language_model.continuations_of_ids(
      [(np.array(a + b, np.int64), len(b)) for _, a, b in requests]
    )
    return [(-one.nll, one.is_greedy) for one in scored]

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """The log-probability of each text, given BOS.

    A long text is cut into windows that do not overlap, as the harness's own
    models cut it. BOS is no part of the text: it is read, never predicted.
    """
    del disable_tqdm
    owners, windows = [], []
    for number, request in enumerate(requests):
      for window in get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0], add_special_tokens=False),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        owners.append(number)
        windows.append((None, *make_disjoint_window(window)))
    sums = np.zeros(len(requests))
    scored = self._loglikelihood_tokens(windows)
    for number, (log_probability, _) in zip(owners, scored, strict=True):
      sums[number] += log_probability
    for request, total in zip(requests, sums.tolist(), strict=True):
      self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
    return sums.tolist()

  def generate_until(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[str]:
    """The greedy continuation of each context, up to what stops it.

    Raises:
      UserError: a request asks for sampling, or for an argument not known.
    """
    del disable_tqdm
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for number, request in enumerate(requests):
      asked = self._checked(request.args[1])
      groups.setdefault(asked, []).append(number)
    texts = [''] * len(requests)
    for (most, stops), numbers in groups.items():
      contexts = [requests[number].args[0] for number in numbers]
      continued = generation.greedy(self.language_model, contexts, most, stops)
      for number, text in zip(numbers, continued, strict=True):
        texts[number] = text
        self.cache_hook.add_partial(
          'generate_until', requests[number].args, text
        )
    return texts

  def _checked(self, asked: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """The most tokens, and what stops a text."""
    normal: dict[str, Any] = dict(
      normalize_gen_kwargs(asked, self.max_gen_toks)
    )
    unknown = sorted(normal.keys() - _GREEDY)
    if normal['do_sample'] or unknown:
      named = ', '.join(unknown) or 'do_sample'
      raise UserError(
        f'generate_until is greedy, but a task asks for {named} '
        f'({asked}): leave the task out, or set generation_kwargs to '
        'do_sample: false and nothing else than until and max_gen_toks.'
      )
    return normal['max_gen_toks'], tuple(filter(None, normal['until']))


def main() -> None:
  """The harness's own command, which knows `--model infoprune` then."""
  from lm_eval.__main__ import cli_evaluate

  try:
    cli_evaluate()
  except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
