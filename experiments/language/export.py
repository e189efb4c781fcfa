"""Saves a model as safetensors, for other programs.

``python -m experiments.export runs/default my-model`` writes ``config.json``,
``model.safetensors`` and ``tokenizer.json`` into the new folder ``my-model``. A
``transformer`` without convolutions becomes a Llama, which ``transformers``
reads; other models are read by ``nl_jax.pretrained.load_pretrained``.

Instead of a workdir, give pretrained weights in safetensors or GGUF to convert
them. ``--static`` leaves out that levels stacked on a transformer learn in
context, and keeps what was consolidated.
"""

from experiments.shared import flags
from nl_jax import continual, training
from nl_jax.errors import InputError
from nl_jax.nested.describe import count_parameters
from nl_jax.pretrained import DTYPES, save_pretrained

POSITIONAL = ("workdir", "out")
FLAGS = {
    "workdir": flags.string(
        "runs/default", "Folder of a training run, or pretrained weights."
    ),
    "step": flags.integer(None, "Which checkpoint; default newest.", None),
    "out": flags.folder(None, "New folder."),
    "dtype": flags.choice("float32", DTYPES, "Type of the weights."),
    "static": flags.switch("Save a transformer without levels that learn."),
}


def main(values: flags.FlagValues) -> None:
    """Loads and saves."""
    if values.out is None:
        raise InputError("--out is missing; give a new folder")
    found = training.load_weights(values.workdir, values.step)
    if values.static:
        found = continual.unstack_levels(found)
    kind = save_pretrained(found, values.out, dtype=values.dtype)
    count = count_parameters(found.variables)
    print(f"{values.out}: {count:,} parameters as {kind}, {values.dtype}")
