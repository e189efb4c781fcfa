"""Continues a prompt from a checkpoint, token by token, at constant memory.

``python -m experiments.generate --workdir=runs/default --prompt="The "``
prints as it draws. ``--save_state=DIR`` keeps everything that the next token
depends on; ``--load_state=DIR`` goes on from it, tomorrow or on another machine
(without a prompt: exactly as if it had never stopped).
"""

import codecs
import sys

import jax
from absl import flags

from experiments import cli
from nl_jax import training

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/default", "Folder of a training run."
)
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint; default newest.")
_PROMPT = flags.DEFINE_string("prompt", None, "Text to continue.")
_TOKENS = flags.DEFINE_integer("tokens", 200, "Tokens to draw.", 0)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.8, "Divides the logits; 0 takes the likeliest token.", 0
)
_TOP_P = flags.DEFINE_float("top_p", 0.95, "Probability mass to draw from.")
_SEED = flags.DEFINE_integer("seed", 0, "Of what is drawn.")
_SAVE = flags.DEFINE_string("save_state", None, "Folder to save the state in.")
_LOAD = flags.DEFINE_string("load_state", None, "Folder of a saved state.")


def main() -> None:
    """Loads, reads the prompt, and writes."""
    if not 0 < _TOP_P.value <= 1:
        raise training.InputError(
            f"--top_p={_TOP_P.value} must be in (0, 1]; 1 allows every token"
        )
    prompt = _PROMPT.value
    if prompt is None:
        prompt = "" if _LOAD.value else "The "
    if not prompt and not _LOAD.value:
        raise training.InputError(
            "--prompt is empty; give some text, or a state with --load_state"
        )
    loaded = training.load_model(_WORKDIR.value, _STEP.value)
    tokenizer = loaded.tokenizer
    sampler = training.Sampler(
        loaded.model,
        loaded.variables,
        vocab_size=tokenizer.vocab_size,
        seed=_SEED.value,
    )
    belongs_to = {
        "model": loaded.meta["config"]["model"],
        "tokenizer": tokenizer.to_json()["hash"],
        "step": loaded.meta["step"],
    }
    if _LOAD.value:
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=leaf.sharding
            ),
            sampler.state,
        )
        sampler.state = training.load_tree(_LOAD.value, shapes, belongs_to)
    sampler.feed(tokenizer.encode(prompt.encode()))
    print(prompt, end="")
    # A character may span several tokens.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in sampler.draw(
        _TOKENS.value, temperature=_TEMPERATURE.value, top_p=_TOP_P.value
    ):
        print(decoder.decode(tokenizer.decode([token])), end="")
        sys.stdout.flush()
    print(decoder.decode(b"", final=True))
    if _SAVE.value:
        training.save_tree(_SAVE.value, sampler.state, belongs_to)


if __name__ == "__main__":
    cli.run(main)
