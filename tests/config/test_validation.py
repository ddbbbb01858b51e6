"""Names of earlier versions: each is refused with its new name."""

import dataclasses

import pytest
from plain_configs import edits_of

from infoprune_jax.config import (
  corpus,
  evaluate,
  experiment,
  model,
  training,
)
from infoprune_jax.config.selection import KEEP_KINDS
from infoprune_jax.config.validation import RENAMED, UserError, did_you_mean

# The path of each option that has been renamed, as it was.
OPTIONS = [
  'corpus.on_bad_row',
  'corpus.reference_share',
  'corpus.heldout_share',
  'corpus.num_parts',
  'train.training.row_length',
  'train.training.decay_share',
  'reference.training.row_length',
  'score.row_length',
  'evaluate.curve_tokens',
  'reference.others',
  'export.places',
  'model.loss_tile',
  'model.kernels',
]


@pytest.mark.parametrize('path', OPTIONS)
def test_an_option_of_an_earlier_version_is_named_with_its_new_name(path):
  edits = edits_of('tiny')
  *sections, name = path.split('.')
  section = edits
  for key in sections:
    section = section[key]
  section.update({name: 1})
  with pytest.raises(UserError) as caught:
    experiment.from_mapping(edits)
  assert str(caught.value).endswith(
    f'{name!r} was renamed to {RENAMED[name]!r}.'
  )


def test_every_new_name_is_an_option_or_a_kind_of_keep():
  sections = [
    corpus.CorpusConfig,
    evaluate.EvaluateConfig,
    experiment.ExportConfig,
    experiment.ReferenceConfig,
    model.ModelConfig,
    training.TrainingConfig,
  ]
  fields = {f.name for s in sections for f in dataclasses.fields(s)}
  assert set(RENAMED.values()) <= fields | set(KEEP_KINDS)
  assert not set(RENAMED) & (fields | set(KEEP_KINDS))


def test_a_kind_of_keep_of_an_earlier_version():
  hint = did_you_mean('everything', KEEP_KINDS)
  assert hint == " 'everything' was renamed to 'all_plus_reference'."


def test_a_renamed_option_of_another_section_is_no_hint():
  assert did_you_mean('everything', ['everywhere']) == (
    " Did you mean 'everywhere'?"
  )
