"""A run so small that a test can do it whole."""

import dataclasses

import pytest

from nl_jax.data import DataConfig
from nl_jax.models import configure
from nl_jax.training import OptimizerConfig, TrainConfig


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"{i} squared is {i * i}; naïve\n" for i in range(300))
    path.write_text("".join(lines))
    return path


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
