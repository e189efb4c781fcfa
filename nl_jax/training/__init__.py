"""Training: data, loss, step, loop, devices, checkpoints, metrics."""

from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.config import (
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    SampleConfig,
    TrainConfig,
    flag_config,
    freeze,
    to_json,
)
from nl_jax.training.data import (
    Corpus,
    Dataset,
    gzip_bits_per_byte,
    held_out_batches,
    load_corpus,
    make_iterator,
    prepare,
)
from nl_jax.training.errors import DivergedError, InputError
from nl_jax.training.loop import TrainResult, train
from nl_jax.training.loss import LossSums, bits_per_byte, token_losses
from nl_jax.training.mesh import RULES, make_mesh
from nl_jax.training.metrics import JsonLines, MetricsWriter, TensorBoard
from nl_jax.training.optimizer import make_optimizer, make_schedule
from nl_jax.training.plot import plot_losses, plot_positions
from nl_jax.training.provenance import (
    git_revision,
    peak_memory_bytes,
    resident_memory_bytes,
    versions,
)
from nl_jax.training.sampling import Sampler, StreamState, sample_token
from nl_jax.training.saved import (
    LoadedModel,
    load_model,
    load_tree,
    save_tree,
)
from nl_jax.training.step import TrainState, make_eval_step, make_train_step
from nl_jax.training.storage import write_json
from nl_jax.training.streaming import (
    PositionTable,
    read_blocks,
    state_norms,
)
from nl_jax.training.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    from_json,
)

__all__ = [
    "RULES",
    "BPETokenizer",
    "ByteTokenizer",
    "Checkpoints",
    "Corpus",
    "DataConfig",
    "Dataset",
    "DivergedError",
    "InputError",
    "JsonLines",
    "LoadedModel",
    "LossSums",
    "MeshConfig",
    "MetricsWriter",
    "OptimizerConfig",
    "PositionTable",
    "SampleConfig",
    "Sampler",
    "StreamState",
    "TensorBoard",
    "Tokenizer",
    "TrainConfig",
    "TrainResult",
    "TrainState",
    "bits_per_byte",
    "flag_config",
    "freeze",
    "from_json",
    "git_revision",
    "gzip_bits_per_byte",
    "held_out_batches",
    "load_corpus",
    "load_model",
    "load_tree",
    "make_eval_step",
    "make_iterator",
    "make_mesh",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "peak_memory_bytes",
    "plot_losses",
    "plot_positions",
    "prepare",
    "read_blocks",
    "resident_memory_bytes",
    "sample_token",
    "save_tree",
    "state_norms",
    "to_json",
    "token_losses",
    "train",
    "versions",
    "write_json",
]
