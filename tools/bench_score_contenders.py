"""The contenders of `bench_score.py`; each returns its measurements.

Ours writes the weights, see `bench_llama.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import bench_llama
import numpy as np

REPEATS = 3


def documents(settings: Any) -> tuple[Any, np.ndarray, np.ndarray]:
  """The store, and shard and index of the documents that fit a sequence."""
  from infoprune_jax.tokens.token_store import TokenStore

  store = TokenStore.open(settings.workdir)
  shard, sequence, left = [], [], settings.tokens
  for number in range(store.num_shards):
    length = store.shard(number).column('num_tokens')
    fits = np.flatnonzero((length > 0) & (length <= settings.sequence_length))
    taken = fits[np.cumsum(length[fits]) <= left]
    left -= int(length[taken].sum())
    shard.append(np.full(len(taken), number))
    sequence.append(taken)
  return store, np.concatenate(shard), np.concatenate(sequence)


def _full_batch(settings: Any) -> dict[str, np.ndarray]:
  """Random tokens; each sequence is one document of full length."""
  from infoprune_jax.batches import packing

  rng = np.random.default_rng(0)
  shape = (settings.sequences, settings.sequence_length)
  batch = packing.empty_sequences(*shape)
  for name in ('decoder_input_tokens', 'decoder_target_tokens'):
    batch[name][:] = rng.integers(0, settings.vocab_size, shape)
  batch['decoder_segment_ids'][:] = 1
  batch['decoder_positions'][:] = np.arange(settings.sequence_length)
  return batch


def compile_scorer(settings: Any, mesh: Any) -> tuple[Any, Any]:
  """Our scorer, and parameters as it takes them."""
  import jax

  from infoprune_jax.config import model as model_config
  from infoprune_jax.config.scoring import ScoringConfig
  from infoprune_jax.model import network
  from infoprune_jax.score import scorer as scorer_lib

  model = model_config.ModelConfig(
    **{
      **bench_llama.model_fields(settings.model, settings.dtype),
      'attention': settings.attention,
      'scan_unroll': 0,  # As the presets do.
    }
  )
  scoring = ScoringConfig(
    per_device_batch_size=settings.sequences,
    sequence_length=settings.sequence_length,
    window_overlap=0,
    dtype=settings.dtype,
  )
  scorer = scorer_lib.compile_scorer(model, scoring, settings.vocab_size, mesh)
  params = scorer.prepare(
    jax.jit(functools.partial(network.init_params, model, settings.vocab_size))(
      jax.random.key(0)
    )
  )
  return scorer, params


def dense_seconds(settings: Any, scorer: Any, params: Any) -> float:
  """Seconds of a batch of full sequences, on the device alone."""
  import jax

  from infoprune_jax.model import partitioning

  on_device = partitioning.global_batch(scorer.mesh, _full_batch(settings))
  program = scorer.program(1)
  repeats = 10 if jax.devices()[0].platform != 'cpu' else 1

  def dense() -> None:
    for _ in range(repeats):
      result = program(params, on_device)
    jax.block_until_ready(result)

  return bench_llama.best(dense, REPEATS) / repeats


def ours(settings: Any) -> dict[str, Any]:
  """Our scorer, with the kernels that it chooses itself."""
  import jax

  from infoprune_jax.model import flops
  from infoprune_jax.runtime import progress
  from infoprune_jax.score import ceiling
  from infoprune_jax.score.documents import Documents

  progress.log_to_stderr()
  mesh = bench_llama.one_device_mesh()
  scorer, params = compile_scorer(settings, mesh)
  bench_llama.write_weights(settings.folder, params)
  seconds = dense_seconds(settings, scorer, params)
  memory = scorer.program(1).memory_analysis().temp_size_in_bytes
  store, shard, sequence = documents(settings)
  sums: list[np.ndarray] = []
  mixed = bench_llama.best(
    lambda: sums.append(scorer.document_nll(params, store, shard, sequence)[0]),
    REPEATS,
  )
  np.save(f'{settings.folder}/ours.npy', sums[-1])
  laid_out = Documents(store, shard, sequence, scorer.scoring)
  length = laid_out.sequences.plan.length
  return {
    'device': jax.devices()[0].device_kind,
    'ceiling': ceiling.measured(settings.dtype),
    'dense': {
      'tokens': settings.sequences * settings.sequence_length,
      'seconds': seconds,
      'memory': memory,
      'tokens_per_second_cost': scorer.flops_per_token,
    },
    'mixed': {
      'tokens': int(length.sum()),
      'documents': len(sequence),
      'seconds': mixed,
      'fill': laid_out.sequences.plan.fill,
      'memory': scorer.program(laid_out.max_segments())
      .memory_analysis()
      .temp_size_in_bytes,
      # The tokens of the documents, without padding and repeated context.
      'tokens_per_second_cost': float(
        sum(
          flops.forward_flops_per_token(
            scorer.model, settings.vocab_size, int(n)
          )
          * n
          for n in length
        )
        / length.sum()
      ),
    },
  }


def _nll_program(
  model: Any, name: str, dynamic: bool | None
) -> Callable[[Any, Any], Any]:
  """The NLL of each target, [sequences, T], compiled as `name` says."""
  import torch

  torch._dynamo.reset()
  forward = model
  if name == 'compiled':
    forward = torch.compile(model, dynamic=dynamic)

  @torch.no_grad()
  def nll(inputs: Any, targets: Any) -> Any:
    logits = forward(input_ids=inputs, use_cache=False).logits
    if name == 'fused':
      return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), reduction='none'
      ).view(targets.shape)
    logp = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    return -logp.gather(-1, targets[..., None])[..., 0]

  return torch.compile(nll, dynamic=dynamic) if name == 'fused' else nll


def _nll_of_texts(
  program: Callable[[Any, Any], Any],
  texts: list[np.ndarray],
  bos_id: int,
  batch_size: int,
  device: str,
) -> np.ndarray:
  """The NLL of each text, [texts] float64, in batches of similar length."""
  import torch

  order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
  sums = np.zeros(len(texts))
  for first in range(0, len(order), batch_size):
    chosen = order[first : first + batch_size]
    padded = np.zeros((2, len(chosen), len(texts[chosen[0]])), np.int64)
    for position, number in enumerate(chosen):
      ids = texts[number]
      padded[0, position, 0] = bos_id
      padded[0, position, 1 : len(ids)] = ids[:-1]
      padded[1, position, : len(ids)] = ids
    inputs, targets = torch.from_numpy(padded).to(device)
    nll = program(inputs, targets).cpu().numpy().astype(np.float64)
    for position, number in enumerate(chosen):
      sums[number] = nll[position, : len(texts[number])].sum()
  return sums


def dense_transformers(
  settings: Any, name: str
) -> tuple[Any, str, dict[str, Any]]:
  """Transformers' model, its device, and what full sequences take.

  'compiled' compiles the model, and takes the loss from its logits as
  lm-evaluation-harness does, in float32; 'fused' compiles both together.
  """
  import torch

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  model = bench_llama.transformers_llama(
    settings.folder,
    settings.model,
    settings.vocab_size,
    settings.sequence_length,
    settings.dtype,
    device,
  ).eval()

  program = _nll_program(model, name, dynamic=None)
  synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
  shape = (settings.sequences, settings.sequence_length)
  tokens = torch.randint(0, settings.vocab_size, shape, device=device)
  repeats = 10 if device == 'cuda' else 1

  def dense() -> None:
    for _ in range(repeats):
      program(tokens, tokens)
    synchronize()

  return (
    model,
    device,
    {
      'tokens': shape[0] * shape[1],
      'seconds': bench_llama.best(dense, REPEATS) / repeats,
      'memory': _peak(model, device),
    },
  )


def transformers_(settings: Any, name: str) -> dict[str, Any]:
  """Batches sorted by length and padded to their longest, logits whole."""
  model, device, dense = dense_transformers(settings, name)
  store, shard, sequence = documents(settings)
  texts = [
    store.document(int(s), int(r)).astype(np.int64)
    for s, r in zip(shard, sequence, strict=True)
  ]
  program = _nll_program(model, name, dynamic=True)
  sums: list[np.ndarray] = []
  mixed_seconds = bench_llama.best(
    lambda: sums.append(
      _nll_of_texts(program, texts, store.bos_id, settings.sequences, device)
    ),
    REPEATS,
  )
  np.save(f'{settings.folder}/{name}.npy', sums[-1])
  return {
    'dense': dense,
    'mixed': {
      'tokens': sum(map(len, texts)),
      'seconds': mixed_seconds,
      'memory': _peak(model, device),
    },
  }


def _peak(model: Any, device: str) -> int | None:
  """Bytes beyond the parameters at the peak; None for a CPU, unknown there."""
  import torch

  if device == 'cpu':
    return None
  parameters = sum(p.numel() * p.element_size() for p in model.parameters())
  return torch.cuda.max_memory_allocated() - parameters


CONTENDERS: dict[str, Callable[[Any], dict[str, Any]]] = {
  'ours': ours,
  **{
    name: functools.partial(transformers_, name=name)
    for name in ('eager', 'compiled', 'fused')
  },
}
