"""Strictness and speed for the whole suite."""

import os
import sys

# A second run of the suite compiles nothing; CI starts from an empty folder.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_dtype_promotion", "standard")
flags.FLAGS(sys.argv[:1])  # Grain reads absl's flags.


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Each compiled program holds memory maps, of which Linux allows a process
    65,530: the whole suite's do not fit in one."""
    yield
    jax.clear_caches()
