"""Streams of invented languages, models that read them, and their test."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.languages.invented import (
    PAIR,
    PROMPT,
    TAGS,
    VOCABULARY,
    invent,
    make_pairs,
    make_sentences,
)
from experiments.shared.training import make_step
from nl_jax.errors import InputError
from nl_jax.models import build

LEVELS = {
    "hope-1": 1,
    "hope-2": 2,
    "hope-3": 3,
    "in context": 0,
    "whole context": 0,
}
"""Number of levels that learn from the stream, by run."""
_REVIEW = 2  # Held-out sentences of each language at the end of training.


def make_stream(rng, languages, pairs, questions):
    """Draws languages; returns the stream and the questions about each.

    Returns:
        token ids ``[languages, pairs, PAIR]`` and
        ``[languages, questions, PAIR]``.
    """
    read, asked = [], []
    for tag in rng.permutation(TAGS)[:languages]:
        language = invent(rng)
        learned, tested = make_sentences(rng, pairs, questions)
        read.append(make_pairs(language, tag, learned))
        asked.append(make_pairs(language, tag, tested))
    return np.stack(read), np.stack(asked)


def make_batch(rng, settings):
    """Draws streams to train on, ``[B, pairs in all, PAIR]``."""
    rows = []
    for _ in range(settings["batch"]):
        read, asked = make_stream(
            rng, settings["trained_languages"], settings["pairs"], _REVIEW
        )
        asked = rng.permutation(asked.reshape(-1, PAIR))
        rows.append(np.concatenate([*read, asked]))
    return np.stack(rows)


def make_model(run, settings):
    """Returns a run's model."""
    levels, language = LEVELS[run], settings["pairs"] * PAIR
    cms = {"hidden": 3.0, "step_periods": (1,)}
    if levels:
        periods = (PAIR, 4 * PAIR, language)[:levels]
        cms = {"hidden": 3.0 / levels, "token_periods": periods}
        # Second order takes twice the time and was no better in first trials.
        cms |= {"objective": "next_token", "first_order": True}
        cms |= {"rate": settings["rate"]}
    window = language
    if run == "whole context":
        window *= settings["languages"] + 1
    return build(
        "hope-attention",
        vocab_size=VOCABULARY,
        d_model=settings["width"],
        n_layers=settings["layers"],
        n_heads=4,
        attention={"window": window},
        cms=cms,
    )


def init(model, seed):
    """Draws parameters, with equal rates per token."""
    first = jnp.zeros((1, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(seed), first)
    cms = variables["params"]["blocks"]["cms"]
    periods = model.config.cms.periods
    for level, period in enumerate(periods, 1):
        name = f"level_{level}_log_rate"
        if name in cms:  # A slow level sums gradients over more tokens.
            cms[name] = cms[name] - np.log(period / periods[0])
    return variables


def train(model, seed, settings):
    """Trains on streams of languages; returns parameters and losses."""
    variables = init(model, seed)
    steps, peak = settings["steps"], settings["learning_rate"]
    read = settings["trained_languages"] * settings["pairs"]
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak, min(30, steps // 2), steps, 0.05 * peak
    )
    tx = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98)
    )

    def loss(variables, pairs):
        tokens = pairs.reshape(len(pairs), -1)
        logits, _ = model.apply(variables, tokens)
        logits = logits.reshape(*pairs.shape, -1)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits[:, :, PROMPT - 1 : -1], pairs[:, :, PROMPT:]
        )
        # Learning and remembering have equal weight.
        return (losses[:, :read].mean() + losses[:, read:].mean()) / 2

    step = make_step(loss, tx)
    rng = np.random.default_rng((seed, 0))
    state, losses = tx.init(variables), []
    for number in range(1, steps + 1):
        variables, state, value = step(
            variables, state, make_batch(rng, settings)
        )
        losses.append(value)
        if number % 50 == 0 or number == steps:
            mean = float(np.mean(jax.device_get(losses[-50:])))
            print(f"step {number} loss {mean:.3f}", flush=True)
            if not np.isfinite(mean):
                raise InputError(
                    f"--learning_rate={peak}: the loss is {mean} at step "
                    f"{number}"
                )
    return variables, [round(float(x), 4) for x in losses]


def test(model, variables, seed, settings):
    """Reads novel languages one after another and tests after each.

    Returns:
        shares of sentences and of syllables that are right, before any language
        (row 0) and after each, ``[languages + 1, languages]``.
    """
    sizes = (settings[x] for x in ("languages", "pairs", "questions"))
    sizes = tuple(sizes)
    rng = np.random.default_rng((seed, 1))
    drawn = [make_stream(rng, *sizes) for _ in range(settings["streams"])]
    read, asked = (np.stack(part) for part in zip(*drawn, strict=True))
    count, questions = len(read), asked.reshape(len(read), -1, PAIR)

    @jax.jit
    def answer(variables, questions, state):
        copies = jax.tree.map(
            lambda a: jnp.repeat(a, questions.shape[1], 0), state
        )
        fast = copies.cms.fast if model.learns_in_context else None
        logits, _ = model.forward(
            variables["params"],
            questions.reshape(-1, PAIR),
            copies.mixers,
            fast,
            aligned=True,
        )
        # Greedy decoding finds the answer if each of its syllables is the
        # likeliest after the right ones before it.
        answers = logits[:, PROMPT - 1 : -1].argmax(-1)
        right = answers == questions.reshape(-1, PAIR)[:, PROMPT:]
        right = right.reshape(*asked.shape[:3], -1)
        return right.all(-1).mean((0, 2)), right.mean((0, 2, 3))

    states = [model.init_state(variables, count)]
    for after in range(1, settings["languages"] + 1):
        tokens = read[:, :after].reshape(count, -1)
        states.append(jax.jit(model.apply)(variables, tokens)[1])
    shares = [answer(variables, questions, state) for state in states]
    return np.array(jax.device_get(shares)).swapaxes(0, 1)
