"""Conversion of a pretrained transformer to one whose MLPs learn in context.

As in arXiv 2512.24695, section 7.3, trained MLP blocks are the initial states
of the levels of a continuum memory. The last blocks learn from the model's own
next-token loss while it reads, assigned to levels by depth, the fastest first.
Other blocks and parameters stay fixed. At rate 0 the model is the original.

Each row of a batch has fast weights of its own: for each learning block a copy
of the MLP matrices, one of their gathered gradients, and one per moment of the
``inner`` optimizer.
"""

import dataclasses
import os

import jax.numpy as jnp

from nl_jax.checks import check_count
from nl_jax.errors import InputError
from nl_jax.layers import CMSConfig
from nl_jax.layers.continuum.cms_config import Inner
from nl_jax.models import LanguageModel, configure
from nl_jax.pretrained.loading import Pretrained, load_pretrained

_RATE = "level_1_log_rate"


def stack_levels(
    pretrained: Pretrained | str | os.PathLike,
    periods: tuple[int, ...],
    *,
    rate: float = 1e-4,
    layers: int | None = None,
    inner: Inner | tuple[Inner, ...] = "sgd",
) -> Pretrained:
    """Converts a pretrained transformer to a Hope-Attention.

    Args:
        pretrained: path for :func:`load_pretrained`, or its result, or a
            :class:`Pretrained` with a ``transformer`` of your own.
        periods: tokens between updates of each level, fastest first, each
            dividing the next, as in :class:`~nl_jax.layers.CMSConfig`.
        rate: learning rate of the levels, for the gradient summed over a
            period; 0 for the original transformer.
        layers: number of last blocks that learn; ``None`` for a quarter, but
            at least one per level; 0 for all.
        inner: optimizer of the levels; see :class:`~nl_jax.layers.CMSConfig`.

    Returns:
        The model, parameters and tokenizer. ``pretrained`` stays valid, and
        shares its arrays with the result.

    Raises:
        ValueError: if the model is no transformer with one MLP per block, or a
            value is not allowed.
        InputError: as for :func:`load_pretrained`.

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
            f"{cms.objective!r}, {cms.shown_periods}"
        )
    periods = tuple(periods)
    if layers is None:
        layers = max(-(-config.n_layers // 4), len(periods))
    check_count("layers", layers, least=0)
    stacked = configure(
        config,
        name="hope-attention",
        cms={
            "token_periods": periods,
            "objective": "next_token",
            "placement": "depth",
            "rate": rate,
            "layers": layers,
            "inner": inner,
        },
    )
    params = pretrained.variables["params"]
    blocks = params["blocks"]
    # The configured rate times exp(0) = 1, as in an untrained model.
    rates = {_RATE: jnp.zeros(config.n_layers)}
    blocks = {**blocks, "cms": {**blocks["cms"], **rates}}
    return dataclasses.replace(
        pretrained,
        model=LanguageModel(stacked),
        variables={
            **pretrained.variables,
            "params": {**params, "blocks": blocks},
        },
    )


def unstack_levels(pretrained: Pretrained) -> Pretrained:
    """Converts a model of :func:`stack_levels` back to a transformer.

    Its MLPs are the slow parameters of the levels, with what was consolidated.

    Args:
        pretrained: a model with one MLP per block, some of which learn in
            context.

    Raises:
        InputError: for another model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from nl_jax.models import build
        >>> model = build("transformer", d_model=16, n_heads=2, n_layers=4)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), int))
        >>> stacked = stack_levels(Pretrained(model, variables), (4, 8))
        >>> unstack_levels(stacked).model == model
        True
    """
    config = pretrained.model.config
    if config.mixer != "attention" or config.cms.placement != "depth":
        raise InputError(
            f"only a transformer with levels stacked across its depth can be "
            f"taken apart; this {config.name} has mixer={config.mixer!r}, "
            f"cms.placement={config.cms.placement!r}"
        )
    params = pretrained.variables["params"]
    blocks = params["blocks"]
    cms = {k: v for k, v in blocks["cms"].items() if k != _RATE}
    plain = CMSConfig(hidden=config.cms.hidden, mlp=config.cms.mlp)
    return dataclasses.replace(
        pretrained,
        model=LanguageModel(configure(config, name="transformer", cms=plain)),
        variables={
            **pretrained.variables,
            "params": {**params, "blocks": {**blocks, "cms": cms}},
        },
    )
