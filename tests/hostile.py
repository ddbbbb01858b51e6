"""What the tests of hostile input share: how many cases, and hostile text."""

import datetime
import os

from hypothesis import HealthCheck, settings, strategies as st

EXAMPLES = int(os.environ.get('FUZZ_EXAMPLES', '15'))
fuzz = settings(
  max_examples=EXAMPLES,
  derandomize='FUZZ_EXAMPLES' not in os.environ,
  deadline=datetime.timedelta(seconds=60),  # A hang, on any machine.
  suppress_health_check=list(HealthCheck),
)

# Text as a corpus may hold it: any character, lone surrogates, direction
# marks, NUL, line ends of other systems.
texts = st.one_of(
  st.text(st.characters(exclude_categories=())),
  st.sampled_from(
    [
      'plain words',
      '\u202eright to left\u202c \u05d0\u05d1',
      'nul \x00 inside',
      '\ud800 alone',
      'line\r\nline\u2028line\x85',
      '\ufeffbom',
      '\u2581meta\u2581space',
      '<s></s><unk><0x41>',
      'e\u0301' * 500,
      ' \t\n',
      'x' * 70_000,
    ]
  ),
)
