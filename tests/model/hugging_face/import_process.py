"""One process of several that import a model; prints what memory it took.

Arguments: the folder, its coordinator, how many processes, and its number.
"""

import json
import sys

import jax

from infoprune_jax.config.experiment import MeshConfig
from infoprune_jax.model import mesh as mesh_lib
from infoprune_jax.model.hugging_face import load
from infoprune_jax.score import scorer

FSDP = 4


def peak_bytes() -> int:
  """The most memory that this process ever held."""
  with open('/proc/self/status') as file:
    (line,) = [line for line in file if line.startswith('VmHWM:')]
  return int(line.split()[1]) * 1024


def main() -> None:
  folder, coordinator, processes, number = sys.argv[1:]
  jax.distributed.initialize(coordinator, int(processes), int(number))
  mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=FSDP, tensor=1))
  jax.block_until_ready(jax.device_put(1.0, jax.local_devices()[0]))
  before = peak_bytes()
  opened = load.open_model(folder)
  abstract = scorer.abstract_params(opened.model, opened.vocab_size, mesh)
  params = jax.block_until_ready(load.load(opened, abstract))
  own = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(params)
    for shard in leaf.addressable_shards
  )
  print(json.dumps({'peak': peak_bytes() - before, 'own': own}))
  jax.distributed.shutdown()


if __name__ == '__main__':
  main()
