"""Hope, tiny, on the text that every CPython has.

``python -m experiments.train_lm``
"""

from nl_jax.training import flag_config


def get_config():
    """Returns the defaults of every field."""
    return flag_config()
