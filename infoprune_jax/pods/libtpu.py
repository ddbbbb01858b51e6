"""The compiler of TPUs, on a machine without one. Imports no JAX."""

import importlib.util
import os

from infoprune_jax.config.validation import UserError

# What JAX and libtpu read, to compile for TPUs that are not there.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',  # It would wait for Google's metadata server.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # Processes that only compile may share.
  # Otherwise it warns that it finds no TPU. Any type will do.
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}


def prepare() -> None:
  """Sets what JAX and libtpu read from the environment, before JAX is imported.

  Raises:
    UserError: libtpu is not installed.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      '--compile_only needs libtpu, the compiler of TPUs, which runs on any '
      "Linux machine: pip install 'infoprune_jax[tpu-compiler]'"
    )
  os.environ.update(ENVIRONMENT)
