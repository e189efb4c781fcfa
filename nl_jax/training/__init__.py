"""Training of language models: loop, devices, checkpoints and metrics."""

from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.evaluation import PositionTable, evaluate
from nl_jax.training.initial import begin_run, load_weights
from nl_jax.training.loop import train
from nl_jax.training.losses import LossSums, bits_per_byte, token_losses
from nl_jax.training.mesh import make_mesh
from nl_jax.training.metric_writers import (
    JsonLines,
    MetricsWriter,
    TensorBoard,
    Tracker,
)
from nl_jax.training.optimizer import make_optimizer, make_schedule
from nl_jax.training.process import (
    cache_programs,
    git_revision,
    peak_memory_bytes,
    resident_memory_bytes,
    versions,
    write_json,
)
from nl_jax.training.reporting import (
    plot_losses,
    plot_positions,
    write_figure,
)
from nl_jax.training.run_folder import open_folder
from nl_jax.training.saved_runs import LoadedModel, load_model
from nl_jax.training.saved_steps import SavedStep, list_steps
from nl_jax.training.step import make_train_step
from nl_jax.training.train_config import (
    MeshConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    flag_config,
    freeze,
)
from nl_jax.training.train_result import TrainResult
from nl_jax.training.train_state import TrainState

__all__ = [
    "Checkpoints",
    "JsonLines",
    "LoadedModel",
    "LossSums",
    "MeshConfig",
    "MetricsWriter",
    "OptimizerConfig",
    "PositionTable",
    "SampleConfig",
    "SavedStep",
    "TensorBoard",
    "Tracker",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "begin_run",
    "bits_per_byte",
    "cache_programs",
    "evaluate",
    "flag_config",
    "freeze",
    "git_revision",
    "list_steps",
    "load_model",
    "load_weights",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "open_folder",
    "peak_memory_bytes",
    "plot_losses",
    "plot_positions",
    "resident_memory_bytes",
    "token_losses",
    "train",
    "versions",
    "write_figure",
    "write_json",
]
