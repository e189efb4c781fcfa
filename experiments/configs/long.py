"""Hope, tiny, long enough to get under gzip's bits per byte.

``python -m experiments.train_lm --config=experiments/configs/long.py``
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
