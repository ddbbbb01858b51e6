"""Importing takes little more memory than the parameters themselves."""

import json
import math
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from hugging_face_folders import write_folder

from infoprune_jax.model import network
from infoprune_jax.model.hugging_face import configs, tensors
from infoprune_jax.model.parameter_file import names_of

# 267 million parameters.
VALUES = {
  'model_type': 'llama',
  'hidden_act': 'silu',
  'vocab_size': 32_000,
  'hidden_size': 1024,
  'intermediate_size': 4096,
  'num_hidden_layers': 12,
  'num_attention_heads': 16,
  'tie_word_embeddings': False,
}
PROCESSES, DEVICES, FILES = 2, 2, 4
SPARE = 200e6  # bytes
PROGRAM = pathlib.Path(__file__).parent / 'import_process.py'


def shapes() -> dict[str, tuple[int, ...]]:
  """Of their tensors."""
  model, vocab_size = configs.model_config(VALUES, 'here')
  own = names_of(network.param_shapes(model, vocab_size))
  made = {}
  for tensor in tensors.TENSORS['llama']():
    if own.keys() >= set(tensor.params):
      parts = [own[p].shape[tensor.is_stacked :] for p in tensor.params]
      layers = model.num_layers if tensor.is_stacked else 1
      for layer in range(layers):
        made[tensor.name.format(layer)] = tensor.shape(parts, model)
  return made


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['F32', 'BF16'])
def test_a_process_holds_its_shards_and_two_tensors(dtype, tmp_path):
  sizes = shapes()
  noise = np.random.default_rng(0).standard_normal(2**20, np.float32)
  write_folder(
    tmp_path,
    VALUES,
    {name: np.resize(noise, shape) for name, shape in sizes.items()},
    num_files=FILES,
    dtype=dtype,
  )
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    coordinator = f'127.0.0.1:{free.getsockname()[1]}'
  flags = f'--xla_force_host_platform_device_count={DEVICES}'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  started = [
    subprocess.Popen(
      [sys.executable, PROGRAM, tmp_path, coordinator, str(PROCESSES), str(i)],
      env=environment,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(PROCESSES)
  ]
  outputs = [process.communicate(timeout=300)[0] for process in started]
  assert [process.returncode for process in started] == [0] * PROCESSES
  elements = sorted(math.prod(shape) for shape in sizes.values())
  for output in outputs:
    figures = json.loads(output.splitlines()[-1])
    print(dtype, figures)
    assert figures['own'] == 4 * sum(elements) // PROCESSES
    assert figures['peak'] <= figures['own'] + 4 * sum(elements[-2:]) + SPARE
