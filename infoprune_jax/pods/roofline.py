"""An estimate of the time of a step, from what chips compute and move at best.

Each of three times is a lower bound; the estimate is the longest of them, as
if the others took place meanwhile.

- Compute: the products of the program at the peak of the chip. Training also
  computes again what `remat` does not keep, and the scores of attention.
- Memory: each product reads its operands and writes its result once, in the
  dtype of the computation, and the optimizer reads and writes its state once.
  Norms, activations and attention's scores do not leave the chip.
- Links: the bytes of the collectives, twice those of an all-reduce, over half
  of the bandwidth of all links of a chip, as a chip sends while it receives.
  Traffic between slices counts as if it took these links, too.
"""

import dataclasses

from infoprune_jax.config.model import ModelConfig
from infoprune_jax.model import flops
from infoprune_jax.model.chips import Chip
from infoprune_jax.pods.programs import Needs, Program

_ITEMSIZES = {'bfloat16': 2, 'float32': 4}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of a step on each chip, and what they come to."""

  compute: float
  memory: float
  links: float
  links_are_formula: bool  # as libtpu does not print the program
  mfu: float  # the FLOPs of the formula, per second and peak

  @property
  def step(self) -> float:
    """Seconds of a step: the longest of the three."""
    return max(self.compute, self.memory, self.links)

  @property
  def bound(self) -> str:
    """What takes longest."""
    names = ('compute', 'memory', 'links')
    return max(names, key=lambda name: getattr(self, name))


def estimate(chip: Chip, program: Program, needs: Needs) -> Estimate:
  """The estimate for a program on chips of a kind."""
  work = _Work(program, needs)
  collectives = needs.collectives
  if collectives is None:
    moved = work.moved_bytes()
  else:
    moved = sum(
      one.bytes * (2 if kind == 'all-reduce' else 1)
      for kind, one in collectives.items()
    )
  compute = work.flops() / chip.flops_per_second
  memory = work.memory_bytes() / chip.hbm_bytes_per_second
  links = moved / (chip.ici_bytes_per_second / 2)
  ideal = program.flops / program.mesh.devices.size / chip.flops_per_second
  return Estimate(
    compute,
    memory,
    links,
    collectives is None,
    ideal / max(compute, memory, links),
  )


def products(model: ModelConfig) -> dict[str, tuple[int, int]]:
  """Rows and columns of the matrices of a layer, whole, by logical inner axis.

  Queries, keys and values are one matrix, and so are gate and up.
  """
  heads = model.num_heads * model.head_dim
  projected = heads + 2 * model.num_kv_heads * model.head_dim
  inner = model.mlp_dim * (1 + model.is_gated)
  return {
    'qkv': (model.embed_dim, projected),
    'output': (heads, model.embed_dim),
    'up': (model.embed_dim, inner),
    'down': (model.mlp_dim, model.embed_dim),
  }


class _Work:
  """What a chip computes and moves in a step, by formulas."""

  def __init__(self, program: Program, needs: Needs):
    self._program, self._needs = program, needs
    self._model = program.planned.model
    self._vocab_size = program.planned.vocab_size
    mesh = self._mesh = program.mesh
    self._itemsize = _ITEMSIZES[program.dtype]
    self._tensor = mesh.num_shards('mlp')
    shards = mesh.num_shards('batch') * mesh.num_shards('length')
    self._tokens = program.tokens / shards  # of a chip

  def flops(self) -> float:
    """FLOPs of a chip, with those that training computes again."""
    model = self._model
    layers = model.num_layers * sum(
      2 * rows * columns for rows, columns in products(model).values()
    )
    head = 2 * model.embed_dim * self._vocab_size
    forward = flops.forward_flops_per_token(
      model, self._vocab_size, self._program.config.sequence_length
    )
    attention = forward - layers - head
    per_token = forward
    if self._program.is_training:
      # The gradient of attention takes five products, not four.
      per_token = 3 * forward + attention / 2
      per_token += self._again() * layers
      per_token += attention * (self._needs.remat != 'none')
    return per_token * self._tokens / self._tensor

  def _again(self) -> float:
    """The fraction of a layer's products that the backward pass repeats."""
    sizes = {name: r * c for name, (r, c) in products(self._model).items()}
    total = sum(sizes.values())
    # The last product of a branch is not needed again.
    full = (total - sizes['down']) / total
    return {
      'none': 0.0,
      'minimal': 0.0,
      'save_qkv_proj': full - sizes['qkv'] / total,
      'full': full,
    }[self._needs.remat]

  def memory_bytes(self) -> float:
    """Bytes that products and the optimizer read and write."""
    model = self._model
    layer = sum(
      self._product_bytes(rows, columns, self._itemsize)
      for rows, columns in products(model).values()
    )
    # Logits are float32.
    head = self._product_bytes(model.embed_dim, self._vocab_size, 4)
    if not self._program.is_training:
      return model.num_layers * layer + head
    passes = 3 + self._again()
    state = 2 * (self._needs.parameters + self._needs.optimizer)
    gradients = 2 * self._needs.parameters
    return model.num_layers * layer * passes + 3 * head + state + gradients

  def _product_bytes(self, rows: int, columns: int, itemsize: int) -> float:
    inner = max(rows, columns) / self._tensor
    outer = min(rows, columns)
    matrix = inner * outer * self._itemsize
    return matrix + self._tokens * (outer * self._itemsize + inner * itemsize)

  def moved_bytes(self) -> float:
    """Bytes of the collectives, if each matrix is gathered when it is used."""
    model, mesh = self._model, self._mesh
    matrices = model.num_layers * sum(
      rows * columns for rows, columns in products(model).values()
    )
    matrices += model.embed_dim * self._vocab_size * (2 - model.tie_embeddings)
    held = matrices / self._tensor * self._itemsize
    training = self._program.is_training
    moved = 0.0
    if mesh.num_shards('embed') > 1:
      # Forward, again, backward; and the gradients.
      moved += held * (4 if training else 1)
    if training and mesh.shape['data'] > 1:
      moved += 2 * held / mesh.num_shards('embed')
    if self._tensor > 1:
      sums = 2 * model.num_layers * self._tokens * model.embed_dim
      moved += 2 * sums * self._itemsize * (3 if training else 1)
    if mesh.num_shards('length') > 1:
      keys = 2 * model.num_kv_heads * model.head_dim * self._tokens
      gathered = keys * model.num_layers * mesh.num_shards('length')
      moved += gathered * self._itemsize * (3 if training else 1)
    return moved
