"""Imported models compute what transformers computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_models import MODELS, options

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import (
  mesh as mesh_lib,
  network,
  partitioning,
)
from infoprune_jax.model.hugging_face import load
from infoprune_jax.score import scorer

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH = 60


def random_model(name):
  """A model whose weights are noise enough to notice any of them."""
  kind, given = options(name)
  config = getattr(transformers, kind)(**given)
  config._attn_implementation = 'eager'
  torch.manual_seed(0)
  model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  return model


def imported(path):
  mesh = mesh_lib.make_mesh(
    MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  opened = load.open_model(str(path))
  abstract = scorer.abstract_params(opened.model, opened.vocab_size, mesh)
  return mesh, opened, load.load(opened, abstract)


@pytest.mark.parametrize('name', MODELS)
def test_logits_equal_those_of_transformers(name, tmp_path):
  theirs = random_model(name)
  theirs.save_pretrained(tmp_path)
  mesh, opened, params = imported(tmp_path)
  ids = np.random.default_rng(0).integers(0, opened.vocab_size, (2, LENGTH))
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  batch = {
    'decoder_input_tokens': ids,
    'decoder_positions': np.tile(np.arange(LENGTH), (2, 1)),
    'decoder_segment_ids': np.ones((2, LENGTH), np.int32),
  }
  with partitioning.use_mesh(mesh):
    model, hidden = network._final_hidden(
      opened.model, params, jax.tree.map(jnp.asarray, batch), 0
    )
    logits = jnp.matmul(hidden, model.output_head(), precision='highest')
  cap = opened.model.logit_softcap
  logits = np.asarray(cap * jnp.tanh(logits / cap) if cap else logits)
  assert expected.std() >= 1.0
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
