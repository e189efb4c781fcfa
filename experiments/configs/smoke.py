"""Seconds instead of minutes: for continuous integration.

``python -m experiments.train_lm --config=experiments/configs/smoke.py``
"""

from nl_jax.training import flag_config


def get_config():
    """Returns a run of 4 steps of a model of width 32."""
    return flag_config(
        model={"d_model": 32, "n_heads": 2, "n_layers": 1},
        data={"max_held_out_bytes": 2048},
        sample={"tokens": 8},
        steps=4,
        batch_size=4,
        seq_len=64,
        eval_every=0,
        checkpoint_every=2,
    )
