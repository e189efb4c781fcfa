"""Strictness and speed for the whole suite.

Compilation is nearly all of the suite's time, so programs are compiled with
few optimisations here: what they compute counts, not how fast.
"""

import gc
import os
import pathlib
import sys
from importlib.metadata import version

# Programs are small: they are not worth LLVM's threads, nor, where JAX still
# lets one choose, the newer emitters. A user's own flags come last and win.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.")
        else "",
        os.environ.get("XLA_FLAGS", ""),
    ]
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A second run of the suite compiles nothing; CI starts from an empty folder.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "standard")
gc.set_threshold(50_000, 20, 20)  # A fifth of all tracing is saved.
flags.FLAGS(sys.argv[:1])  # Grain reads absl's flags.

_MANY_MAPS = 20_000


@pytest.fixture(autouse=True)
def _optimise(request):
    """Where a test is marked so: for the last digits of float32."""
    few = jax.config.read("jax_disable_most_optimizations")
    marked = request.node.get_closest_marker("optimised") is not None
    jax.config.update("jax_disable_most_optimizations", few and not marked)
    yield
    jax.config.update("jax_disable_most_optimizations", few)


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Each compiled program holds memory maps, of which Linux allows a process
    65,530: the whole suite's do not fit in one."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _forget_many_programs(request):
    """One module's slow tests may fill them, and gigabytes."""
    yield
    if request.node.get_closest_marker("slow") is not None:
        maps = pathlib.Path("/proc/self/maps")
        if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPS:
            jax.clear_caches()


@pytest.fixture
def cache_hits():
    """Hits in a folder of compiled programs that a test chooses itself."""
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: getattr(jax.config, name) for name in names}
    hits = []

    def note(event, **unused):
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(note)
    yield hits
    jax.monitoring.unregister_event_listener(note)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
