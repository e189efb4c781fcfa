"""Kernels are interpreted here: what they compute counts, not how fast."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_without_optimising():
    """Compilation is most of the suite's time; a third of it all is saved."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
