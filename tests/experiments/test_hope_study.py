"""The study of Hope's parts: text, sizes, frozen parts, best rates."""

import json
import pathlib
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reporting import sections
from experiments.shared.records import read_cells
from experiments.study import freezing, hope_study
from experiments.study.split_text import SplitText, overlap, read_and_split
from experiments.study.variants import VARIANTS, model_of, sized
from nl_jax import training
from nl_jax.errors import InputError
from nl_jax.models import build
from nl_jax.nested.level_table import count_parameters

COMMON = "A line of more than forty characters, said by many.\n"
SMALL = (
    "--steps=2",
    "--batch=2",
    "--length=64",
    "--held_out=100",
    "--documents=0",
)


@pytest.fixture
def folder(tmp_path):
    """Returns a folder of 20 documents, each twice, with a common line."""
    path = tmp_path / "text"
    path.mkdir()
    for number in range(20):
        text = f"Document {number} has its own line of 50 characters.\n"
        for copy in "ab":
            (path / f"{number}{copy}.txt").write_text(COMMON + text)
    return path


def test_no_line_is_in_both_parts(folder):
    split = read_and_split([str(folder)])
    assert len(split.held_out) == 2 and len(split.train) == 18
    assert all(COMMON in text for text in split.held_out)
    assert not any(COMMON in text for text in split.train)
    assert len({*split.train, *split.held_out}) == 20
    again = read_and_split([str(folder)])
    assert again == split


def test_a_wheel_is_read_like_a_folder(folder, tmp_path):
    wheel = tmp_path / "texts.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"texts/{path.name}")
        file.writestr("texts/__init__.py", "raise SystemExit")
        file.writestr("texts.dist-info/top.txt", "texts")
    assert read_and_split([str(wheel)]) == read_and_split([str(folder)])


def test_a_wheel_of_other_encodings_is_refused(tmp_path):
    wheel = tmp_path / "texts.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("texts/a.txt", "déjà vu".encode("latin-1"))
    with pytest.raises(InputError, match="--paths: a text is not UTF-8"):
        read_and_split([str(wheel)])


def test_overlap_counts_windows():
    split = SplitText(["x" * 39, "y" * 40], ["y" * 41 + "z" * 2], "")
    assert overlap(split) == 2 / 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("titans", (128, 4)),
        ("hope-plain", (128, 4)),
        ("local", (128, 4)),
        ("mamba", (64, 2)),
        ("mlp", (64, 2)),
    ],
)
def test_variants_are_as_large_as_hope(name, shape):
    fields = dict(zip(("d_model", "n_heads"), shape, strict=True))
    hope = build("hope", **fields)
    size = count_parameters(hope.parameter_shapes())
    found = build(model_of(name, **fields))
    found = count_parameters(found.parameter_shapes())
    assert abs(found / size - 1) < 0.002


def test_sizes_that_no_levels_give_are_refused():
    with pytest.raises(InputError, match="of width 16 in 2 blocks cannot have"):
        sized("hope", {"d_model": 16, "n_heads": 2}, 5000)


def test_a_run_that_diverged_is_of_the_same_line(monkeypatch):
    monkeypatch.setattr(hope_study, "train_on_text", lambda *_, **__: None)
    settings = {"width": 16, "heads": 2, "layers": 1}
    options = {"paths": (), "documents": [], "settings": settings}
    found = hope_study.train_one("hope", 0.1, 0, **options)
    assert found["change"] == VARIANTS["hope"].change
    assert found["bits_per_byte"] is None


def test_every_base_is_a_variant():
    assert {v.base for v in VARIANTS.values()} <= {"", *VARIANTS}


TINY = {"d_model": 16, "n_heads": 2, "n_layers": 1}
LEVELS = {"objective": "next_token", "step_periods": (1, 4), "rate": 0.1}
MODELS = {
    "hope": ("memory", "generators"),
    "lstm": ("level 1", "level 2"),
}


@pytest.mark.parametrize(
    ("name", "part"), [(n, p) for n, parts in MODELS.items() for p in parts]
)
def test_one_part_is_frozen_and_the_other_learns(name, part):
    cms = LEVELS if name == "lstm" else {}
    model = build(name, **TINY, cms=cms)
    tokens = jax.random.randint(jax.random.key(0), (1, 128), 0, 256)
    variables = jax.jit(model.init)(jax.random.key(1), tokens)
    frozen = freezing.frozen_parts(model, variables)
    assert tuple(frozen) == MODELS[name]
    own, given = frozen[part]
    _, after = jax.jit(own.apply)(given, tokens)

    def parts(state):
        if name == "lstm":
            return state.cms.fast
        return state.mixers.memory.weights, state.mixers.generators.weights

    moves = jax.tree.map(
        lambda a, b: bool(jnp.abs(a - b).max() > 1e-6),
        parts(model.init_state(variables, 1)),
        parts(after),
    )
    moved = [any(jax.tree.leaves(kind)) for kind in moves]
    assert moved == [other != part for other in MODELS[name]]


def test_losses_by_position_are_those_of_the_model():
    model = build("titans", **TINY)
    documents = np.arange(2 * 64).reshape(2, 64) % 256
    variables = jax.jit(model.init)(jax.random.key(1), documents)
    logits, _ = jax.jit(model.apply)(variables, documents)
    log_p = jax.nn.log_softmax(logits[:, :-1])
    targets = documents[:, 1:, None]
    bits = -jnp.take_along_axis(log_p, targets, -1)[..., 0] / jnp.log(2)
    found = freezing.measure(model, variables, documents, [0, 16, 64])
    # The loss of token 16 is the sixteenth.
    expected = [bits[:, :15].mean(1), bits[:, 15:].mean(1)]
    np.testing.assert_allclose(found[""], jnp.stack(expected, 1), atol=1e-4)
    (cost,) = freezing.costs(found).values()
    more = np.asarray(found["memory"]) - found[""]
    # Of two documents, half their distance is the standard error.
    expected = abs(more[0] - more[1]) / 2
    np.testing.assert_allclose(cost, np.stack([more.mean(0), expected], 1))


@pytest.fixture
def trained(monkeypatch):
    """Stands in for training; returns the configurations that it was given."""
    given = []

    def train(config, workdir):
        given.append(config)
        rate = config.optimizer.learning_rate
        best = 8e-3 if config.model.mixer == "titans" else 1.6e-2
        bits = 2 + abs(rate / best - 1) + 0.1 * config.seed
        return types.SimpleNamespace(
            step=config.steps,
            held_out_bits_per_byte=bits + (config.model.mixer == "mamba"),
            records=[{"loss": 1.0, "bits_per_byte": bits}],
            variables=jnp.zeros(7),
            train_seconds=1.0,
        )

    monkeypatch.setattr(training, "train", train)
    return given


def test_seeds_run_at_the_best_rate_only(script, trained, folder, tmp_path):
    flags = [*SMALL, f"--paths={folder}", "--seeds=0,1", f"--out={tmp_path}"]
    flags.append("--variants=hope,hope-levels-1-4,mamba")
    status, _, errors = script(hope_study, *flags)
    assert status == 0, errors
    # Three rates with the first seed, then the best with the second.
    assert len(trained) == 3 * 3 + 3
    section, ablation = sections.make_sections(read_cells(tmp_path))
    _, lines = sections.table_of(section)
    rates = {line[0]: line[2] for line in lines}
    assert rates == {
        "hope-levels-1-4": "0.008",
        "hope": "0.008",
        "mamba": "0.016*",
    }
    by_name = {line[0]: line for line in lines}
    # 3.0 and 3.1: half their distance is the standard error of two.
    assert by_name["mamba"][3:6] == ["3", "2", "3.0500 ± 0.0500"]
    assert by_name["mamba"][-1] == ""
    assert by_name["hope"][-1] == "hope-levels-1-4: +0.0000 ± 0.0000"
    assert {row["variant"] for row in ablation.rows} == {"hope"}
    data = trained[0].data
    text = pathlib.Path(data.held_out_paths[0]).read_text()
    held_out = [json.loads(line)["text"] for line in text.splitlines()]
    assert held_out == read_and_split([str(folder)]).held_out
    assert script(hope_study, *flags)[0] == 0
    assert len(trained) == 12


def test_costs_of_freezing_are_those_of_the_first_seed():
    def row(seed, frozen):
        bits = {"": [[2.0], [3.0]], "memory": frozen}
        found = {"edges": [0, 256], "by_position": bits}
        return {"variant": "hope", "seed": seed, **found}

    rows = [row(1, [[9.0], [9.0]]), row(0, [[2.5], [4.5]]), {"variant": "m"}]
    head, lines = hope_study.frozen(rows)
    assert head == ["variant", "frozen", "0 to 256"]
    # 0.5 and 1.5 more: half their distance is the standard error of two.
    assert lines == [
        ["hope", "none", "2.500"],
        ["hope", "memory", "+1.0000 ± 0.5000"],
    ]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--variants=best", "allowed are titans, "),
        ("--rates=0", "must be positive"),
        ("--paths=", "--paths is missing"),
        ("--paths=/nowhere", "'/nowhere' does not exist"),
        ("--length=100", "must be a multiple of 64"),
        ("--width=65", "must be a multiple of --heads=4"),
        ("--documents=1", "no standard error"),
        ("--documents=3", "has 0 documents of 16384 bytes"),
    ],
)
def test_wrong_flags_are_one_line(refused, folder, flag, words):
    refused(hope_study, words, *SMALL, f"--paths={folder}", flag)
