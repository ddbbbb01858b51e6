"""A Llama that both sides of a bench load: its shapes, weights and twin.

Weights lie in a folder as transformers names them: one `.npy` each, bfloat16 as
uint16.
"""

import json
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SIZES = {
  'tiny': dict(
    num_layers=4,
    embed_dim=256,
    mlp_dim=704,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
  ),
  '8m': dict(
    num_layers=8,
    embed_dim=256,
    mlp_dim=704,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
  ),
  '17m': dict(
    num_layers=6,
    embed_dim=384,
    mlp_dim=1024,
    num_heads=6,
    num_kv_heads=6,
    head_dim=64,
  ),
  '124m': dict(
    num_layers=12,
    embed_dim=768,
    mlp_dim=2048,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
  ),
  '1b3': dict(
    num_layers=24,
    embed_dim=2048,
    mlp_dim=5504,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
  ),
}
UNTIED = ('1b3',)  # with a head of its own
THETA, EPSILON = 10000.0, 1e-6


def model_fields(name: str, dtype: str) -> dict[str, Any]:
  """The fields of our `ModelConfig` that both sides share, and its choices."""
  return dict(
    **SIZES[name],
    activation='swiglu',
    qk_norm=False,
    logit_softcap=0.0,
    rope_theta=THETA,
    norm_epsilon=EPSILON,
    tie_embeddings=name not in UNTIED,
    dtype=dtype,
    scan_unroll=1,
    remat='none',
    loss_chunk_tokens=1024,
    attention='auto',
    loss_kernel='auto',
  )


def run_contender(name: str, command: Sequence[str]) -> dict[str, Any] | None:
  """What a contender prints, in a process of its own; None where that fails."""
  root = pathlib.Path(__file__).resolve().parent.parent
  done = subprocess.run(
    command,
    env={**os.environ, 'PYTHONPATH': f'{root}:{root / "tools"}'},
    capture_output=True,
    text=True,
  )
  lines = [line for line in done.stdout.splitlines() if 'RESULT' in line]
  if done.returncode or not lines:
    print(f'{name} failed:\n{done.stderr[-3000:]}', flush=True)
    return None
  return json.loads(lines[-1].split('RESULT', 1)[1])


def best(work: Callable[[], Any], repeats: int) -> float:
  """Seconds of the fastest of some runs, after one that does not count."""
  work()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    work()
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def one_device_mesh() -> Any:
  """Our mesh of the first device alone."""
  import jax

  from infoprune_jax.config import experiment as config_lib
  from infoprune_jax.model import mesh as mesh_lib

  return mesh_lib.make_mesh(
    config_lib.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )


def write_weights(folder: str, params: Any) -> None:
  """Writes parameters under the names, and in the shapes, of a Llama."""
  layers = params['layers']
  attention, mlp = layers['attention'], layers['mlp']
  arrays = {
    'model.embed_tokens.weight': params['embedding'],
    'model.norm.weight': params['final_norm']['scale'],
    'lm_head.weight': params['head'].T
    if 'head' in params
    else params['embedding'],
  }
  for number in range(len(mlp['up'])):
    name = f'model.layers.{number}.'
    width = mlp['up'].shape[1]
    arrays |= {
      name + 'input_layernorm.weight': layers['attention_norm']['scale'][
        number
      ],
      name + 'post_attention_layernorm.weight': layers['mlp_norm']['scale'][
        number
      ],
      **{
        f'{name}self_attn.{short}_proj.weight': attention[ours][number]
        .reshape(width, -1)
        .T
        for short, ours in (('q', 'query'), ('k', 'key'), ('v', 'value'))
      },
      name + 'self_attn.o_proj.weight': attention['out'][number]
      .reshape(-1, width)
      .T,
      **{
        f'{name}mlp.{short}_proj.weight': mlp[short][number].T
        for short in ('gate', 'up', 'down')
      },
    }
  for name, array in arrays.items():
    values = np.ascontiguousarray(np.asarray(array))
    if values.dtype.itemsize == 2:
      values = values.view(np.uint16)
    np.save(f'{folder}/{name}.npy', values)


def transformers_llama(
  folder: str, name: str, vocab_size: int, length: int, dtype: str, device: str
) -> Any:
  """Transformers' Llama in training mode, with the weights of a folder.

  Without a folder ('') its weights are those of its own initialization.
  """
  import torch
  import transformers

  size = SIZES[name]
  config = transformers.LlamaConfig(
    vocab_size=vocab_size,
    hidden_size=size['embed_dim'],
    intermediate_size=size['mlp_dim'],
    num_hidden_layers=size['num_layers'],
    num_attention_heads=size['num_heads'],
    num_key_value_heads=size['num_kv_heads'],
    head_dim=size['head_dim'],
    rms_norm_eps=EPSILON,
    rope_theta=THETA,
    max_position_embeddings=max(2048, length),
    tie_word_embeddings=name not in UNTIED,
    attn_implementation='sdpa',
  )
  with torch.device(device):
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
  if not folder:
    return model
  weights = {}
  for path in pathlib.Path(folder).glob('*.weight.npy'):
    values = np.load(path)
    if values.dtype == np.uint16:
      tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    else:
      tensor = torch.from_numpy(values)
    weights[path.name.removesuffix('.npy')] = tensor.to(device, model.dtype)
  model.load_state_dict(weights)
  return model
