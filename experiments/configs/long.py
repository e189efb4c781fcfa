r"""Hope, tiny, for longer, until it knows its text by heart.

Command::

    python -m experiments.train_lm \
        --config=experiments/configs/long.py --workdir=runs/long

21 to 24 minutes on one of two busy CPU cores. Held out, 1.85 bits per byte at
step 1,000 on Python 3.11's text and 1.94 at the end (gzip: 2.61, crossed before
step 200): 330 KB are too little text to read 12 times.
"""

from nl_jax.training import flag_config


def get_config():
    """Returns the default run with more steps."""
    return flag_config(
        steps=2000,
        eval_every=200,
        checkpoint_every=100,
        optimizer={"warmup_steps": 100},
    )
