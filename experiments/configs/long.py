r"""Hope, tiny, for longer: far under gzip's bits per byte.

Command::

    python -m experiments.train_lm \
        --config=experiments/configs/long.py --workdir=runs/long

21 to 24 minutes on one of two busy CPU cores; held out about 1.33 bits per byte
on Python 3.11's text (gzip: 2.44, crossed before step 200).
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
