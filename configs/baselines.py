"""Named sets of arms: the rules of papers, and what to compare them with.

Each function gives arms by name. For a config file:

  arms = config.select.arms  # `base.get_config()` has `full` and `random`.
  arms.update(baselines.information(fraction=0.5))
  arms.length = baselines.filters(fraction=0.5).length
  arms.length.keep = 'bottom'  # The direction is one word: 'middle', 'top'.

Each arm is trained once for each seed. `fraction` is of tokens, in (0, 1]. Set
`arms.random.fraction` to the same. Only `information` and `low_perplexity` need
a model.
"""

from ml_collections import ConfigDict

from configs import base

# The distance of an example from the middle of two rankings, whichever is
# larger: by the mean of the log frequencies of its tokens, and by the deviation
# of these frequencies.
_PRIOR = (
  f'greatest(abs(rank({base.INVERSE_FREQUENCY}) - 0.5)'
  f', abs(rank({base.FREQUENCY_DEVIATION}) - 0.5))'
)


def information(fraction: float) -> ConfigDict:
  """`top_nll`, `top_sum` and `bottom_nll`, by the NLL of the reference model.

  `top_sum` adds the inverse word frequency, as in arXiv 2406.14124.
  """
  both = f'{base.INFORMATION} + {base.INVERSE_FREQUENCY}'
  return _arms(
    fraction,
    top_nll=('top', base.INFORMATION),
    top_sum=('top', both),
    bottom_nll=('bottom', base.INFORMATION),
  )


def priors(fraction: float) -> ConfigDict:
  """`prior_mean`, `prior_deviation` and `prior`, by token frequencies.

  The two terms of arXiv 2509.18577, each alone, and both.
  """
  return _arms(
    fraction,
    prior_mean=('middle', base.INVERSE_FREQUENCY),
    prior_deviation=('middle', base.FREQUENCY_DEVIATION),
    prior=('bottom', _PRIOR),
  )


def filters(fraction: float) -> ConfigDict:
  """`length`, `compression` and `low_perplexity`, as filters of quality rank.

  CCNet (arXiv 1911.00359) and DCLM (arXiv 2406.11794) select by the perplexity
  of a model of clean text. Here it is that of the reference model.
  """
  return _arms(
    fraction,
    length=('top', 'num_tokens'),
    compression=('top', base.COMPRESSION),
    low_perplexity=('bottom', base.INFORMATION),
  )


def copies() -> ConfigDict:
  """`deduplicated` and `near_deduplicated`: the first of each group."""
  return base.named(
    dict(
      deduplicated=base.arm('distinct'),
      near_deduplicated=base.arm('distinct', 'near_duplicate_group'),
    )
  )


def arms(fraction: float) -> ConfigDict:
  """All baselines: `random`, `copies`, `filters` and `priors`."""
  sets = (copies(), filters(fraction), priors(fraction))
  made = base.named({'random': base.arm('random', fraction=fraction)})
  for one in sets:
    made.update(one)
  return made


def _arms(fraction: float, **rules: tuple[str, str]) -> ConfigDict:
  """Arms of one budget, in order; each rule is `keep` and `score`."""
  return base.named(
    {
      name: base.arm(keep, score, fraction=fraction)
      for name, (keep, score) in rules.items()
    }
  )
