"""What a user makes themself goes wherever the library's own does."""

import dataclasses
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

from nl_jax.layers import (
    CMS_OBJECTIVES,
    MIXERS,
    CMSObjective,
    LSTMConfig,
    MambaConfig,
    MixerConfig,
    token_level,
)
from nl_jax.memory import (
    ARCHITECTURES,
    MATRIX_RULES,
    OBJECTIVES,
    RETENTIONS,
    RULES,
    lp,
)
from nl_jax.models import build, configure, to_json
from nl_jax.models.config_json import check_named
from nl_jax.nested import describe
from nl_jax.optimizers import NAMED, NamedOptimizer
from nl_jax.training import TrainConfig

SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": 16}
TABLES = {
    "objective": (OBJECTIVES, "l2"),
    "architecture": (ARCHITECTURES, "residual"),
    "rule": (RULES, "gd"),
    "retention": (RETENTIONS, "l2"),
}


def own(field):
    table, name = TABLES[field]
    return dataclasses.replace(table[name], name="mine")


def program(model):
    """What the model computes, as text: nothing has to be compiled."""
    tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    text = str(jax.make_jaxpr(model.apply)(variables, tokens))
    return re.sub("0x[0-9a-f]+", "", text)


@pytest.mark.parametrize(
    ("mixer", "field"),
    [
        ("titans", "objective"),
        ("titans", "architecture"),
        ("titans", "rule"),
        *(("deep", field) for field in TABLES),
    ],
)
def test_an_object_does_what_its_name_does(monkeypatch, mixer, field):
    table, name = TABLES[field]
    base = "hope" if mixer == "titans" else "titans"
    plain = {} if mixer == "titans" else {"momentum": False}

    def model(value):
        return build(base, **SMALL, **{mixer: {field: value} | plain})

    named = model(name)
    assert program(model(own(field))) == program(named)
    monkeypatch.setitem(table, "mine", own(field))
    registered = model("mine").config
    assert getattr(registered.choices, field) == "mine"
    text = str(describe(model("mine")))
    assert len(text.splitlines()) == len(str(describe(named)).splitlines())


@dataclasses.dataclass(frozen=True)
class Average(MixerConfig):
    """The mean of all tokens so far, times a number that is learned."""

    start: float = 1.0
    inner: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        object.__setattr__(self, "inner", tuple(self.inner))

    @property
    def cycle(self):
        return 2

    def build(self, d_model, n_heads, dtype):
        return AverageMixer(self, d_model)

    def levels(self, params, state):
        row = token_level(
            name="average",
            memory_of="tokens",
            architecture="vector",
            objective="l2",
            rule="sum",
            state=state,
            params=params,
        )
        return [row]


class AverageMixer(nn.Module):
    config: Average
    d_model: int

    def initial_state(self, batch_size):
        return jnp.zeros((batch_size, self.d_model)), jnp.zeros((batch_size,))

    @nn.compact
    def __call__(self, x, state=None, *, aligned=False):
        total, count = state or self.initial_state(x.shape[0])
        counts = count[:, None] + jnp.arange(1, x.shape[1] + 1)
        totals = total[:, None] + jnp.cumsum(x, 1)
        init = nn.initializers.constant(self.config.start)
        scale = self.param("scale", nn.with_logical_partitioning(init, ()), ())
        y = scale * totals / counts[..., None]
        return y, (totals[:, -1], counts[:, -1])


def test_a_mixer_of_ones_own_needs_no_table(monkeypatch):
    model = build("hope", mixer=Average(start=2.0), **SMALL)
    tokens = jnp.arange(5)[None]
    variables = model.init(jax.random.key(0), tokens)
    whole, _ = model.apply(variables, tokens)
    first, state = model.apply(variables, tokens[:, :3])
    rest, _ = model.apply(variables, tokens[:, 3:], state)
    assert jnp.allclose(whole, jnp.concatenate([first, rest], 1), atol=1e-5)
    rows = {row.name: row for row in describe(model).rows}
    assert rows["average"].parameters == 1
    assert model.config.cycle == 2
    with pytest.raises(ValueError, match="multiple of 2"):
        TrainConfig(model=model.config, seq_len=5)
    saved = json.loads(json.dumps(to_json(model.config)))
    assert saved["mixer"] == {"Average": {"start": 2.0, "inner": [1, 2]}}
    with pytest.raises(ValueError, match=r"'Average' must .*\.MIXERS"):
        configure("hope", **saved)
    monkeypatch.setitem(MIXERS, "Average", Average)
    assert configure("hope", **saved) == model.config
    late = build("hope", mixer="Average", **SMALL)
    assert late.config.choices == Average()
    assert build(late.config, mixer={"Average": {"start": 3.0}}).config.choices


def test_choices_are_saved_by_name(monkeypatch):
    config = configure("titans", deep={"objective": own("objective")})
    saved = json.loads(json.dumps(to_json(config)))
    assert saved["deep"]["objective"] == "mine"
    with pytest.raises(ValueError, match=r"objective='mine' must be one of .*"):
        configure("titans", **saved)
    monkeypatch.setitem(OBJECTIVES, "mine", own("objective"))
    again = configure("titans", **saved)
    assert again.deep.inner_objective == config.deep.objective


def test_choices_are_saved_under_the_key_of_their_table(monkeypatch):
    config = configure("titans", deep={"objective": own("objective")})
    with pytest.raises(ValueError, match="loaded again: objective='mine' must"):
        check_named(config)
    monkeypatch.setitem(OBJECTIVES, "other", own("objective"))
    check_named(config)
    saved = json.loads(json.dumps(to_json(config)))
    assert saved["deep"]["objective"] == "other"
    again = configure("titans", **saved)
    assert again.deep.inner_objective == config.deep.objective
    nameless = type("Nameless", (CMSObjective,), {})()
    config = configure("hope", cms={"objective": nameless})
    with pytest.raises(ValueError, match=r"cms\.objective='Nameless' must be"):
        check_named(config)


def test_an_objective_of_levels_is_saved_by_name(monkeypatch):
    class Mine(CMSObjective):
        name = "mine"

    config = configure("lstm", cms={"objective": Mine(), "token_periods": (2,)})
    saved = json.loads(json.dumps(to_json(config)))
    with pytest.raises(ValueError, match=r"cms\.objective='mine' must be one"):
        configure("hope", **saved)
    monkeypatch.setitem(CMS_OBJECTIVES, "mine", config.cms.objective)
    assert configure("hope", **saved).cms.goal is config.cms.objective


def test_a_late_optimizer_is_one_of_levels_too(monkeypatch):
    cms = {"objective": "local", "token_periods": (4, 8), "inner": "lion"}
    with pytest.raises(ValueError, match=r"cms.inner='lion' must be one of"):
        build("lstm", **SMALL, cms=cms)
    lion = NamedOptimizer(optax.scale_by_lion)
    monkeypatch.setitem(NAMED, "lion", lion)
    model = build("lstm", **SMALL, cms=cms)
    tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    state = jax.eval_shape(lambda v: model.init_state(v, 1), variables)
    assert "ScaleByLionState" in str(jax.tree.structure(state.cms.inner))


def test_objectives_of_levels_are_compared_by_what_they_are():
    class Own(CMSObjective):
        name = "own"

    assert Own() == Own() and hash(Own()) == hash(Own())
    assert Own() != CMS_OBJECTIVES["local"]
    cms = {"objective": Own(), "token_periods": (4,)}
    again = {"objective": Own(), "token_periods": (4,)}
    assert configure("lstm", cms=cms) == configure("lstm", cms=again)


def test_a_name_that_stands_for_another_is_not_saved():
    """It would come back as the table's."""
    config = configure("titans", deep={"objective": lp(2.5)})
    with pytest.raises(ValueError, match="'lp', which stands for another"):
        to_json(config)


def test_a_matrix_rule_of_ones_own_gets_the_gates_it_asks_for():
    rule = dataclasses.replace(MATRIX_RULES["delta"], name="mine")
    mine = build("deltanet", **SMALL, matrix={"rule": rule})
    assert program(mine) == program(build("deltanet", **SMALL))
    assert "mine" in str(describe(mine))
    with pytest.raises(ValueError, match="gate='zeta' must be one of 'beta'"):
        wrong = dataclasses.replace(rule, gates=("zeta",))
        build("deltanet", matrix={"rule": wrong})
    with pytest.raises(ValueError, match="decay='channel' does not go with"):
        build("deltanet", matrix={"rule": rule, "decay": "channel"})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rule": RULES["muon"]}, "must be one of 'dgd', 'gd'"),
        ({"rule": "muon"}, "rule='muon' must be one of 'dgd', 'gd'"),
        ({"objective": 3}, "objective=3 must be one of"),
        ({"objective": OBJECTIVES["gated_huber"]}, "must be one of 'l2'"),
        ({"architecture": lp()}, "or of type Architecture"),
    ],
)
def test_what_does_not_fit_is_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        build("hope", titans=choices)


def test_a_mixer_may_be_changed_for_another():
    config = configure("hope", mixer=LSTMConfig(expansion=2.0))
    other = configure(config, mixer={"mamba": {"expansion": 1.0}})
    assert other.mixer == MambaConfig(expansion=1.0)
    same = configure(config, mixer={"expansion": 3.0})
    assert same.mixer == LSTMConfig(expansion=3.0)
    with pytest.raises(ValueError, match=r"unknown field mixer\.chunks"):
        configure(config, mixer={"chunks": 1})
    with pytest.raises(ValueError, match="titans=3 must be a mapping"):
        configure(config, titans=3)


@pytest.mark.parametrize("curvature", [jnp.array(1.0), jnp.ones(4)], ids=str)
def test_an_objective_may_have_an_array(curvature):
    mine = dataclasses.replace(OBJECTIVES["l2"], curvature=curvature)
    model = build("titans", **SMALL, deep={"objective": mine})
    assert hash(model) == hash(build(model.config))
    assert program(model) == program(build("titans", **SMALL))


def test_a_threshold_is_asked_for_where_it_has_a_gate():
    with pytest.raises(ValueError) as error:
        build("hope", titans={"objective": OBJECTIVES["gated_huber"]})
    assert str(error.value) == (
        "objective='gated_huber' must be one of 'l2', 'dot_product', 'huber', "
        "'lp', or of type Objective without a threshold per token, which has "
        "no gate here"
    )
