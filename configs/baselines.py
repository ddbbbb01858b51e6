"""The arms that pruning by information is to be compared with, by name.

For a config file:

  arms = baselines.arms(fraction=0.5)
  arms.length.keep = 'bottom'  # The direction is one word: 'middle', 'top'.
  config.select.arms.update({name: arms[name] for name in ('length', 'prior')})

None but `low_perplexity` reads a model.
"""

from ml_collections import ConfigDict

from configs import base

# How far an example is from the middle of two rankings: by the mean of its
# tokens' log frequencies, and by the deviation of their frequencies.
_PRIOR = (
  f'greatest(abs(rank({base.INVERSE_FREQUENCY}) - 0.5)'
  f', abs(rank({base.FREQUENCY_DEVIATION}) - 0.5))'
)


def arms(fraction: float) -> ConfigDict:
  """Each baseline, at one budget.

  Args:
    fraction: Of tokens, in (0, 1]; where copies go, the rest stays.
  """
  scores = dict(
    length=('top', 'num_tokens'),
    compression=('top', base.COMPRESSION),
    # arXiv 2509.18577: each of its two terms alone, and both.
    prior_mean=('middle', base.INVERSE_FREQUENCY),
    prior_deviation=('middle', base.FREQUENCY_DEVIATION),
    prior=('bottom', _PRIOR),
    # As CCNet (arXiv 1911.00359) and DCLM (arXiv 2406.11794) do by perplexity;
    # theirs is of a model of clean text, ours of the reference model.
    low_perplexity=('bottom', base.INFORMATION),
  )
  return ConfigDict(
    dict(
      random=base.arm('random', fraction=fraction),
      deduplicated=base.arm('distinct'),
      near_deduplicated=base.arm('distinct', 'near_duplicate_group'),
      **{
        name: base.arm(keep, score, fraction=fraction)
        for name, (keep, score) in scores.items()
      },
    ),
    sort_keys=False,  # The report shows arms in this order.
  )
