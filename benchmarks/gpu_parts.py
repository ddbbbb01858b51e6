"""The measurements of `on_gpu.py`, each in a process: `gpu_parts.py NAME JSON`.

A part appends its results to a file of JSON lines as they come, so that a part
that is stopped leaves what it has measured. Parts import none of TensorFlow,
SeqIO, Grain, DuckDB and ml_collections. Documents are made up: random tokens,
lognormal lengths.
"""

import contextlib
import functools
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import bench_llama
import numpy as np

SPREAD = 1.0  # of the logarithm of lengths
REPEATS = 3
FILL = 0.99  # of the last batches that are scored
# Of JAX's attention: tokens of a block, and in its backward pass.
BLOCKS = ((64, 32), (128, 32), (64, 64), (128, 64))
Settings = dict[str, Any]


class MadeDocuments:
  """Documents of random tokens, in the shape of a token store of one shard."""

  bos_id, eos_id, path = 1, 2, 'made-up documents'

  def __init__(self, lengths: np.ndarray, vocab_size: int):
    rng = np.random.default_rng(0)
    self.lengths = lengths
    self.offsets = np.concatenate([[0], np.cumsum(lengths)])
    self.tokens = rng.integers(3, vocab_size, lengths.sum(), np.uint16)

  def shard(self, number: int) -> 'MadeDocuments':
    """The only shard."""
    del number
    return self

  def column(self, name: str) -> np.ndarray:
    """The lengths: no other column is known."""
    assert name == 'num_tokens'
    return self.lengths


def documents(settings: Settings, kind: str, tokens: int) -> MadeDocuments:
  """Documents of about as many tokens as asked for.

  Args:
    settings: See `on_gpu.py`.
    kind: Their median length, or 'dense' for one as long as a sequence.
    tokens: Of all.
  """
  longest = settings['sequence_length']
  if kind == 'dense':
    lengths = np.full(-(-tokens // longest), longest)
  else:
    rng = np.random.default_rng(1)
    drawn = rng.lognormal(np.log(float(kind)), SPREAD, tokens // 4)
    # A longer one is cut, as training does: no sequence has repeated context.
    drawn = np.maximum(1, drawn.astype(np.int64))
    lengths = drawn[: np.searchsorted(np.cumsum(drawn), tokens) + 1]
  return MadeDocuments(lengths, settings['vocab_size'])


def packed(settings: Settings, kind: str, tokens: int) -> Any:
  """Documents in sequences, in random order."""
  from infoprune_jax.batches import packing

  made = documents(settings, kind, tokens)
  plan = packing.pack(made.lengths, settings['sequence_length'], 0, seed=0)
  number = np.arange(len(made.lengths))
  return packing.PackedSequences(made, 0 * number, number, plan)  # pyright: ignore[reportArgumentType]


def record(settings: Settings, **result: Any) -> None:
  """Appends a result, under the name of its part, and prints it."""
  line = json.dumps({'part': settings['part'], **result})
  with open(settings['results'], 'a', encoding='utf-8') as file:
    file.write(line + '\n')
  print(line, flush=True)


def measure_ceiling(settings: Settings) -> None:
  """The rate of matrix products, and what the device is."""
  import jax

  from infoprune_jax.score import ceiling

  device = jax.devices()[0]
  record(
    settings,
    device=device.device_kind,
    versions={'jax': jax.__version__, 'python': sys.version.split()[0]},
    memory=(device.memory_stats() or {}).get('bytes_limit'),
    flops_per_second=ceiling.measured(settings['dtype']),
  )


def check_attention(settings: Settings) -> None:
  """How far outputs and gradients of each kernel are from XLA's."""
  import jax
  import jax.numpy as jnp

  from infoprune_jax.model import attention
  from infoprune_jax.model.kernels import gpu_attention

  length = settings['sequence_length'] - 2  # No multiple of a block.
  made = packed({**settings, 'sequence_length': length}, '83', 4 * length)
  batch = made.batch(np.arange(2), 2)
  ids = jnp.asarray(batch['decoder_segment_ids'])
  limit = gpu_attention.segment_limit(int(ids.max()) + 1)
  for kv_heads in (4, 2):
    keys = jax.random.split(jax.random.key(0), 4)
    *inputs, direction = (
      jax.random.normal(key, (2, length, heads, 64), jnp.bfloat16)
      for key, heads in zip(keys, (4, kv_heads, kv_heads, 4), strict=True)
    )

    @functools.partial(jax.jit, static_argnums=0)
    def pulled(backend: str, inputs: list, direction: Any) -> list:
      segments = attention.segments(ids, backend, limit)
      out, pull = jax.vjp(
        lambda *x: attention.attention(
          *x, segments, backend, attention.Logits(0.125)
        ),
        *inputs,
      )
      seen = (ids > 0)[:, :, None, None]  # Nothing reads the rest.
      return [jnp.where(seen, x, 0) for x in (out, *pull(direction * seen))]

    expected = pulled('xla', inputs, direction)
    for backend in settings['attention']:
      with failures(settings, backend, kv_heads=kv_heads):
        apart = [
          float(abs(a.astype(float) - b).max() / abs(b).max())
          for a, b in zip(
            pulled(backend, inputs, direction), expected, strict=True
          )
        ]
        worst = float(np.max(apart))  # NaN if one is.
        record(settings, kind=backend, kv_heads=kv_heads, apart=worst)


def time_attention(settings: Settings) -> None:
  """Attention alone, forward and backward, of one layer.

  cuDNN with more and more room for segments, of which there are as many each
  time; and JAX's kernel with blocks of other sizes.
  """
  import jax
  import jax.numpy as jnp

  from infoprune_jax.model import attention
  from infoprune_jax.model.kernels import gpu_attention

  sizes = bench_llama.SIZES[settings['model']]
  size, length = settings['sequences'], settings['sequence_length']
  made = packed(settings, settings['documents'][1], size * length)
  ids = made.batch(np.arange(min(size, len(made))), size)['decoder_segment_ids']
  batch = {'decoder_segment_ids': jnp.asarray(ids)}
  real = gpu_attention.fewest_segments_first(batch)['decoder_segment_ids']
  least = gpu_attention.segment_limit(gpu_attention.mean_segments(ids), 2)
  shape = (size, length, sizes['num_heads'], sizes['head_dim'])
  inputs = tuple(
    jax.random.normal(key, shape, jnp.bfloat16)
    for key in jax.random.split(jax.random.key(0), 4)
  )
  form = attention.Logits(shape[-1] ** -0.5)

  def seconds(backend: str, ids: Any, limit: int) -> float:
    @jax.jit
    def both(query: Any, key: Any, value: Any, direction: Any) -> Any:
      segments = attention.segments(ids, backend, limit)
      _, pull = jax.vjp(
        lambda *x: attention.attention(*x, segments, backend, form),
        *(query, key, value),
      )
      return pull(direction)

    return bench_llama.best(
      lambda: jax.block_until_ready([both(*inputs) for _ in range(4)]), REPEATS
    )

  limits = [least * 4**power for power in range(4) if least * 4**power <= 512]
  cases = [('cudnn', 'dense', 0 * real + 1, 2)]
  cases += [('cudnn', f'limit {limit}', real, limit) for limit in limits]
  cases += [('pallas', f'blocks {a} {b}', real, 0) for a, b in BLOCKS]
  for backend, kind, segments, limit in [*cases, ('xla', '', real, 0)]:
    with failures(settings, f'{backend} {kind}'):
      if backend == 'pallas':
        blocks = map(int, kind.split()[1:])
        gpu_attention.BLOCK, backward = blocks
        gpu_attention.backward_block = lambda head_dim, size=backward: size
      taken = seconds(backend, segments, limit) / 4
      record(settings, kind=f'{backend} {kind}', layer_seconds=taken)


@contextlib.contextmanager
def failures(settings: Settings, kind: str, **names: Any) -> Iterator[None]:
  """Records an error, and goes on."""
  try:
    yield
  except Exception as error:
    text = f'{type(error).__name__}: {error}'
    record(settings, kind=kind, **names, failed=text[:300])


def train(settings: Settings) -> None:
  """Our train step on dense and on packed sequences, from the host's arrays."""
  import bench_train_contenders
  import jax

  from infoprune_jax.model import flops
  from infoprune_jax.train import state as state_lib

  model, training = bench_train_contenders.configs(settings)
  size, vocab_size = settings['sequences'], settings['vocab_size']
  mesh, state = bench_llama.one_device_mesh(), None
  for kind in settings['documents']:
    with failures(settings, kind):
      tokens = size * settings['sequence_length'] * settings['batches']
      made = packed(settings, kind, tokens)
      order = np.random.default_rng(0).permutation(len(made))
      batches = [
        made.batch(chosen, size)
        for chosen in order[: len(order) // size * size].reshape(-1, size)
      ]
      started = time.monotonic()
      program = state_lib.compile_program(
        model, training, vocab_size, mesh, made.plan.segments_per_sequence
      )
      steps = [program.step_for(batch) for batch in batches]
      # A step that failed has taken the state with it.
      if state is None or state['step'].is_deleted():
        state = program.init(0)
      compiled = time.monotonic() - started

      def run(program: Any = program, work: Any = (steps, batches)) -> None:
        nonlocal state
        for step, batch in zip(*work, strict=True):
          state, metrics = step(state, program.put(batch))
        jax.block_until_ready(metrics)

      seconds = bench_llama.best(run, REPEATS) / len(batches)
      stats = jax.devices()[0].memory_stats() or {}
      record(
        settings,
        kind=kind,
        tokens_per_second=size * settings['sequence_length'] / seconds,
        flops_per_token=flops.training_flops_per_token(
          model, vocab_size, settings['sequence_length']
        ),
        compile_seconds=compiled,
        memory=stats.get('peak_bytes_in_use'),
        fill=made.plan.fill,
        segment_limit=program.segment_limit,
        programs=len({id(step) for step in steps}),
      )


def score(settings: Settings) -> None:
  """Our scorer: full sequences on the device, and documents from the host."""
  import bench_score_contenders

  from infoprune_jax.score import stream

  times: list[stream.Times] = []

  def run(mesh: Any, items: Any, of_run: stream.Times) -> None:
    stream_run(mesh, items, of_run)
    times.append(of_run)

  stream_run, stream.run = stream.run, run
  given = types.SimpleNamespace(**settings)
  scorer, params = bench_score_contenders.compile_scorer(
    given, bench_llama.one_device_mesh()
  )
  size = settings['sequences'] * settings['sequence_length']
  both = {
    'flops_per_token': scorer.flops_per_token,
    'attention': scorer.model.attention,
  }
  for kind in settings['documents']:
    with failures(settings, kind):
      if kind == 'dense':
        tokens = size
        seconds = bench_score_contenders.dense_seconds(given, scorer, params)
      else:
        # A little less than fills the batches: one more would be near empty.
        tokens = int(FILL * size * settings['score_batches'])
        made = documents(settings, kind, tokens)
        tokens, number = int(made.lengths.sum()), np.arange(len(made.lengths))
        work = functools.partial(
          scorer.document_nll, params, made, 0 * number, number
        )
        seconds = bench_llama.best(work, REPEATS)
        last = times[-1]
        waited = last.waiting / (last.waiting + last.computing)
        both['waited_for_host'] = waited
      record(settings, kind=kind, tokens_per_second=tokens / seconds, **both)


def train_transformers(settings: Settings) -> None:
  """Transformers' train step on dense sequences, compiled with its loss."""
  import bench_train_contenders

  shape = (1, settings['sequences'], settings['sequence_length'])
  tokens = np.random.default_rng(0).integers(3, settings['vocab_size'], shape)
  places = np.broadcast_to(np.arange(shape[2]), shape)
  ones = np.ones(shape, np.int64)
  arrays = dict(inputs=tokens, targets=tokens, positions=places, segments=ones)
  measured = bench_train_contenders.transformers_(
    {**settings, 'curve_steps': 0}, compiled=True, arrays=arrays
  )
  record(
    settings, kind='dense', tokens_per_second=measured['tokens_per_second']
  )


def score_transformers(settings: Settings) -> None:
  """Transformers' loss of full sequences, compiled with the model."""
  import bench_score_contenders

  *_, dense = bench_score_contenders.dense_transformers(
    types.SimpleNamespace(**settings), 'fused'
  )
  rate = dense['tokens'] / dense['seconds']
  record(settings, kind='dense', tokens_per_second=rate)


PARTS: dict[str, Callable[[Settings], None]] = {
  'ceiling': measure_ceiling,
  'check': check_attention,
  'attention': time_attention,
  'train': train,
  'score': score,
  'train_transformers': train_transformers,
  'score_transformers': score_transformers,
}


if __name__ == '__main__':
  PARTS[sys.argv[1]](json.loads(sys.argv[2]))
