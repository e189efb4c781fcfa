"""A pretrained transformer whose MLP blocks become levels that learn.

arXiv 2512.24695, section 7.3: the trained MLP blocks are the initial states of
the levels of a continuum memory. The last blocks learn while the model reads,
from its own next-token loss, and are shared out among the levels in the order
of depth, the fastest first; the blocks below them, and all that is no MLP
matrix, stand still. At rate 0 the model is the one it came from.

Each row of a batch has fast weights of its own: per learning block the MLP
matrices twice, once as weights and once as gathered gradients, and once more
per moment of the ``inner`` optimizer.
"""

import dataclasses
import os

import jax.numpy as jnp

from nl_jax.checks import check_count
from nl_jax.layers.continuum.cms_config import Inner
from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.loading import Pretrained, load_pretrained


def stack_levels(
    pretrained: Pretrained | str | os.PathLike,
    periods: tuple[int, ...],
    *,
    rate: float = 1e-4,
    layers: int | None = None,
    inner: Inner | tuple[Inner, ...] = "sgd",
) -> Pretrained:
    """Makes a Hope-Attention out of a pretrained transformer.

    Args:
        pretrained: from :func:`load_pretrained`, or what that takes; or a
            :class:`Pretrained` with a ``transformer`` of your own.
        periods: tokens between the steps of each level, fastest first, each
            dividing the next, as in :class:`~nl_jax.layers.CMSConfig`.
        rate: of the levels' steps along the summed gradient of a period; 0 for
            the transformer as it was.
        layers: how many of the last blocks learn; ``None`` for a quarter, at
            least one per level; 0 for all.
        inner: how levels step; see :class:`~nl_jax.layers.CMSConfig`.

    Returns:
        The model, parameters and tokenizer; what was given stays valid, and
        shares its arrays.

    Raises:
        ValueError: for a model that is no transformer with one MLP per block,
            or values that the configuration does not allow.
        InputError: as :func:`load_pretrained`, if a path is given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.models import build
        >>> model = build("transformer", d_model=16, n_heads=2, n_layers=4)
        >>> tokens = jnp.arange(12)[None]
        >>> variables = jax.jit(model.init)(jax.random.key(0), tokens)
        >>> stacked = stack_levels(Pretrained(model, variables), (4, 8), rate=0)
        >>> stacked.model.config.cms.blocks(4)
        (slice(2, 3, None), slice(3, 4, None))
        >>> stacked.model.learns_in_context  # At rate 0 there is no need.
        False
    """
    if not isinstance(pretrained, Pretrained):
        pretrained = load_pretrained(pretrained)
    config = pretrained.model.config
    cms = config.cms
    one_mlp = cms.goal.unit == "steps" and len(cms.periods) == 1
    if config.mixer != "attention" or not one_mlp:
        raise ValueError(
            f"stacking needs a transformer with one MLP per block; this "
            f"{config.name} has mixer={config.mixer!r}, cms.objective="
            f"{cms.objective!r}, cms.periods={cms.periods}"
        )
    periods = tuple(periods)
    if layers is None:
        layers = max(-(-config.n_layers // 4), len(periods))
    check_count("layers", layers, least=0)
    stacked = configure(
        config,
        name="hope-attention",
        cms={
            "periods": periods,
            "objective": "next_token",
            "placement": "depth",
            "rate": rate,
            "layers": layers,
            "inner": inner,
        },
    )
    params = pretrained.variables["params"]
    blocks = params["blocks"]
    # A rate of 1 times the configuration's, as in a model without training.
    rates = {"level_1_log_rate": jnp.zeros(config.n_layers)}
    blocks = {**blocks, "cms": {**blocks["cms"], **rates}}
    return dataclasses.replace(
        pretrained,
        model=LanguageModel(stacked),
        variables={
            **pretrained.variables,
            "params": {**params, "blocks": blocks},
        },
    )
