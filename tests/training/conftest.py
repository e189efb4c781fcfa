"""A run so small that a test can do it whole."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from nl_jax.data import Batch, DataConfig
from nl_jax.models import LanguageModel, configure
from nl_jax.training import (
    OptimizerConfig,
    TrainConfig,
    TrainState,
    loop,
    make_optimizer,
)

LENGTHS = np.ones(256, np.int32)


@functools.partial(jax.jit, static_argnums=0)
def draw(model, key, tokens):
    """Initial parameters, compiled once for each model."""
    return model.init(key, tokens)


@pytest.fixture(scope="module", autouse=True)
def _compile_each_run_once():
    """Most runs of a module are alike, and so are their compiled steps."""
    real, known = loop.compile_programs, {}

    def compile_programs(
        config, model, optimizer, mesh, shapes, lengths, batch
    ):
        of_run = (config.model, config.optimizer, config.steps, config.mesh)
        parts = config.batch_size, config.accumulate, config.data.reading
        settings = [
            jax.config.read(f"jax_{name}")
            for name in ("disable_most_optimizations", "enable_x64")
        ]
        where = jax.tree.map(lambda a: (a.shape, a.dtype), (shapes, batch))
        key = repr(
            (of_run, parts, settings, where, np.asarray(lengths).tolist())
        )
        if key not in known:
            known[key] = real(
                config, model, optimizer, mesh, shapes, lengths, batch
            )
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compile_programs", compile_programs)
        yield


def outer_optimizer(config, model, variables):
    return make_optimizer(
        config.optimizer,
        config.steps,
        model.logical_axes(),
        model.parameter_periods(variables),
    )


def parts(config):
    """The model, state, optimizer and one batch of a run."""
    model = LanguageModel(config.model)
    tokens = jax.random.randint(
        jax.random.key(1), (config.batch_size, config.seq_len + 1), 0, 256
    )
    variables = draw(model, jax.random.key(0), tokens[:1, :1])
    optimizer = outer_optimizer(config, model, variables)
    state = TrainState(variables, jax.jit(optimizer.init)(variables))
    return model, state, optimizer, Batch(tokens)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"{i} squared is {i * i}; naïve\n" for i in range(300))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def documents(text_file):
    """Returns a function from a way to read documents of 10 to 450 tokens."""
    path = text_file.parent / "documents.jsonl"
    lines = [{"text": f"{i} " * (5 + 4 * (i % 37))} for i in range(90)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = {"paths": (str(path),), "max_held_out_bytes": 256}
    return lambda reading: DataConfig(reading=reading, **options)


@pytest.fixture(scope="session")
def tiny(text_file):
    """Returns a function from changes to a configuration."""

    def make(name="transformer", model=(), **changes):
        titans = {"chunk_size": 4, "memory_chunk_size": 4}
        fields = {"d_model": 16, "n_heads": 2, "n_layers": 1} | dict(model)
        fields |= {"titans": titans} if name == "hope" else {}
        config = TrainConfig(
            model=configure(name, **fields),
            data=DataConfig(paths=(str(text_file),), max_held_out_bytes=256),
            optimizer=OptimizerConfig(warmup_steps=2, learning_rate=1e-2),
            steps=6,
            batch_size=4,
            seq_len=16,
            eval_every=0,
            checkpoint_every=2,
        )
        return dataclasses.replace(config, **changes)

    return make
