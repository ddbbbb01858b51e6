"""Parameters in one file: what is read is what was given."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from infoprune_jax.config.validation import UserError
from infoprune_jax.model import parameter_file

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
  'array',
  [
    BASE,
    BASE.T,
    BASE.transpose(1, 0, 2),
    np.asfortranarray(BASE),
    BASE[:, ::2],
    BASE[..., 1:3],
    BASE[::-1],
    np.broadcast_to(BASE[0, 0], (5, 4)),
    BASE.astype('>f4'),
    np.empty((0, 3), np.float32),
    np.empty((3, 0), np.float32).T,
    np.float32(1.5),
    np.array(2.5, np.float32),
    np.array([[np.nan, np.inf], [-0.0, 1e-45]], np.float32).T,
  ],
)
def test_an_array_of_any_layout_is_read_as_it_was_given(array, tmp_path):
  path = str(tmp_path / 'p.safetensors')
  params = {'a': {'b': array}, 'c': jax.numpy.ones(2)}
  parameter_file.write(path, params, {'answer': 42})
  found = safetensors.numpy.load_file(path)
  np.testing.assert_array_equal(found['a.b'], array)
  np.testing.assert_array_equal(found['c'], [1.0, 1.0])
  assert found['a.b'].shape == np.shape(array)
  assert parameter_file.read_facts(path) == {'answer': 42}


@pytest.mark.parametrize(
  'wrong',
  [
    lambda arrays: {**arrays, 'a': arrays['a'].T.reshape(2, 3)},
    lambda arrays: {**arrays, 'a': arrays['a'].reshape(3, 2)},
    lambda arrays: {**arrays, 'a': arrays['a'].astype(np.float16)},
    lambda arrays: {},
    lambda arrays: {**arrays, 'z': arrays['a']},
  ],
)
def test_a_file_that_gives_back_something_else_is_not_written(
  wrong, tmp_path, monkeypatch
):
  save = safetensors.numpy.save
  monkeypatch.setattr(
    safetensors.numpy, 'save', lambda arrays, facts: save(wrong(arrays), facts)
  )
  params = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}
  with pytest.raises(UserError, match='reads back other values of [az] than'):
    parameter_file.write(str(tmp_path / 'p.safetensors'), params, {})
  assert not list(tmp_path.iterdir())
