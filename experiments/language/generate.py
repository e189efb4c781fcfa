"""Continues a prompt from a checkpoint, token by token, at constant memory.

``python -m experiments.generate --workdir=runs/default --prompt="The "``
prints tokens as it draws them. ``--save_state=FILE`` saves everything that the
next token depends on. ``--load_state=FILE`` continues from it, later or on
another machine; without a prompt, exactly as if it had never stopped.
"""

import codecs
import sys

from experiments.language.steps import LIST_STEPS, print_steps
from experiments.shared import flags
from nl_jax import training
from nl_jax.continual import Sampler, SamplerState, load_state, save_state
from nl_jax.errors import InputError
from nl_jax.training.process import StopSignal

FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "step": flags.integer(None, "Which checkpoint; default newest."),
    "list_steps": LIST_STEPS,
    "prompt": flags.string(None, "Text to continue."),
    "tokens": flags.integer(200, "Tokens to draw.", 0),
    "temperature": flags.number(
        0.8, "Divides the logits; 0 takes the likeliest token.", 0
    ),
    "top_p": flags.number(0.95, "Probability mass to draw from."),
    "seed": flags.seed("Of what is drawn."),
    "save_state": flags.string(None, "File to save the state in."),
    "load_state": flags.string(None, "File of a saved state."),
}


def main(values: flags.FlagValues) -> None:
    """Loads, reads the prompt, and writes."""
    if values.list_steps:
        print_steps(values.workdir)
        return
    if not 0 < values.top_p <= 1:
        raise InputError(
            f"--top_p={values.top_p} must be in (0, 1]; 1 allows every token"
        )
    prompt = values.prompt
    if prompt is None:
        prompt = "" if values.load_state else "The "
    if not prompt and not values.load_state:
        raise InputError(
            "--prompt is empty; give some text, or a state with --load_state"
        )
    loaded = training.load_model(values.workdir, values.step)
    tokenizer = loaded.tokenizer
    sampler = Sampler(
        loaded.model,
        loaded.variables,
        vocab_size=tokenizer.vocab_size,
        seed=values.seed,
    )
    if values.load_state:
        sampler.state = load_state(
            values.load_state,
            loaded.model,
            loaded.variables,
            kind=SamplerState,
            meta=loaded.state_meta,
        )
    ids = tokenizer.encode(prompt)
    sampler.feed(ids)
    print(tokenizer.decode(ids).decode("utf-8", "replace"), end="")
    # A character may span several tokens.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with StopSignal() as stop:
        for token in sampler.draw(
            values.tokens, temperature=values.temperature, top_p=values.top_p
        ):
            print(decoder.decode(tokenizer.decode([token])), end="")
            sys.stdout.flush()
            if stop.asked:
                break
    print(decoder.decode(b"", final=True))
    if values.save_state:
        save_state(
            values.save_state,
            loaded.model,
            sampler.state,
            meta=loaded.state_meta,
        )
