"""Class-incremental learning: data, what each learner computes, the script."""

import json

import numpy as np
import pytest

from experiments.classes import class_incremental
from experiments.classes.data import (
    MODULES,
    class_tasks,
    read_texts,
    snippets,
    standard_library,
    validation_rows,
)
from experiments.classes.features import Cosines, encode
from experiments.classes.inputs import Examples
from experiments.classes.learners import (
    KLDA,
    ClassMeans,
    KLDAEnsemble,
    Softmax,
)
from experiments.classes.matrix import METRICS
from experiments.classes.memory import (
    LevelChoice,
    LevelledMemory,
    split_levels,
)
from experiments.classes.returning import arrange_visits, measure_stream
from experiments.shared.records import read_cells
from nl_jax.continual import metrics
from nl_jax.errors import InputError
from tests.experiments.conftest import word_table

WIDTH, CLASSES = 16, 4


def draw(seed, count=120, spread=0.5, balanced=True):
    """Gaussian classes around random means; rows in random order."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % CLASSES
    if not balanced:
        labels = np.minimum(labels, rng.integers(0, CLASSES, count))
    means = np.random.default_rng(7).normal(size=(CLASSES, WIDTH))
    x = means[labels] + spread * rng.normal(size=(count, WIDTH))
    order = rng.permutation(count)
    return x[order].astype(np.float32), labels[order].astype(np.int32)


def by_class(x, labels):
    """The same stream, class after class."""
    order = np.argsort(labels, kind="stable")
    return x[order], labels[order]


# --- data ---


def test_snippets_are_fives_of_stripped_lines():
    lines = [f"line {i}" for i in range(12)]
    source = "\n\n   ".join(lines)
    assert snippets(source) == ["\n".join(lines[:5]), "\n".join(lines[5:10])]
    long = ["x" * 100] * 5 + lines[:5]
    assert snippets("\n".join(long)) == ["\n".join(lines[:5])]
    assert snippets("a\nb") == []


def test_standard_library():
    texts = standard_library()
    assert len(texts.classes) == 77 and texts.classes == sorted(MODULES)
    counts = np.bincount(texts.train_labels) + np.bincount(texts.test_labels)
    assert counts.max() == 120 and counts.min() >= 100
    share = np.bincount(texts.test_labels) / counts
    assert share == pytest.approx(0.2, abs=0.01)
    assert all(text.count("\n") == 4 for text in texts.train)
    assert texts.train == standard_library().train


def test_tasks_share_out_all_classes():
    tasks = class_tasks(77, 7, 3)
    assert [len(task) for task in tasks] == [11] * 7
    assert sorted(np.concatenate(tasks)) == list(range(77))
    assert not np.array_equal(tasks[0], class_tasks(77, 7, 4)[0])
    with pytest.raises(InputError, match="--tasks=8"):
        class_tasks(7, 8, 0)


def test_files_of_both_kinds_are_read_alike(tmp_path):
    rows = [(f'number "{i}", yes', "ab"[i % 2]) for i in range(20)]
    table, lines = tmp_path / "a.csv", tmp_path / "a.jsonl"
    quoted = (f'"{text.replace(chr(34), chr(34) * 2)}",{k}' for text, k in rows)
    table.write_text("words,kind\n" + "\n".join(quoted) + "\n")
    lines.write_text(
        "\n".join(json.dumps({"words": t, "kind": k}) for t, k in rows) + "\n\n"
    )
    first = read_texts([str(table)], "words", "kind")
    second = read_texts([str(lines)], "words", "kind")
    assert first.train == second.train and first.test == second.test
    assert len(first.train) == 16 and first.classes == ["a", "b"]
    assert set(first.train + first.test) == {text for text, _ in rows}
    both = read_texts([str(table), str(lines)], "words", "kind")
    assert both.train == both.test == [text for text, _ in rows]
    learn, held_out = validation_rows(both)
    assert sorted([*learn, *held_out]) == list(range(20))
    assert np.bincount(both.train_labels[held_out]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"text,label\na,b\n", "must end in .csv or .jsonl"),
        ("a.csv", b"text,kind\na,b\n", "no column 'label' among text, kind"),
        ("a.csv", b"text,label\na\n", "row 1: 'label' has no value"),
        ("a.csv", b"text,label\na,b\nc, d,e\n", "row 2: more values than"),
        ("a.jsonl", b'{"text": null, "label": 1}', "row 1: 'text' has no"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"\xff\xfe", "is not UTF-8 text"),
        ("a.csv", b"text,label\na,b\n", "'b' has a single text"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{', "row 2: "),
        ("a.jsonl", b"[1]\n", "row 1: not an object"),
        ("b.csv", None, "is not a file"),
    ],
)
def test_wrong_files_are_named(tmp_path, refused, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    refused(class_incremental, words, f"--data={path}", "--tasks=2")
    refused(class_incremental, str(path), f"--data={path}", "--tasks=2")


def test_labels_that_only_one_file_has(tmp_path):
    for name, label in (("a.csv", "x"), ("b.csv", "y")):
        (tmp_path / name).write_text(f"text,label\nt,{label}\n")
    files = [str(tmp_path / name) for name in ("a.csv", "b.csv")]
    with pytest.raises(InputError, match="'x' is in one of them only"):
        read_texts(files, "text", "label")


def test_features_see_no_other_text():
    texts = ["how do I find my card", "import os", "where is my card", ""]
    cosines = Cosines(512, 512, 1.0)
    x = cosines(encode(texts, 512, "ngrams"))
    assert x.shape == (4, 512) and x.dtype == np.float32
    alone = cosines(encode(texts[:1], 512, "ngrams"))
    assert x[0] == pytest.approx(alone[0], abs=1e-6)
    assert np.linalg.norm(x, axis=1) == pytest.approx(1, abs=0.2)
    similar, different = x[0] @ x[2], x[0] @ x[1]
    assert similar > different + 0.1
    # Texts without a common n-gram are sqrt(2) apart.
    assert different == pytest.approx(np.exp(-1), abs=0.15)


# --- learners ---


def test_class_means_are_nearest_centroids():
    from sklearn.neighbors import NearestCentroid

    (x, labels), (x_test, _) = draw(0, balanced=False), draw(1, spread=2.0)
    learner = ClassMeans(WIDTH, CLASSES)
    for part in np.array_split(np.arange(len(x)), 3):
        learner.learn(x[part], labels[part])
    known = NearestCentroid().fit(x, labels)
    assert learner.means == pytest.approx(known.centroids_, abs=1e-5)
    assert (learner.scores(x_test).argmax(1) == known.predict(x_test)).all()


def test_klda_is_linear_discriminant_analysis_of_random_cosines():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    (x, labels), (x_test, _) = draw(0), draw(1, spread=2.0)
    cosines = Cosines(WIDTH, 24, 0.5)
    learner = KLDA(cosines, CLASSES, 0.3)
    for part in np.array_split(np.arange(len(x)), 3):
        learner.learn(x[part], labels[part])
    # With equally many of each class its prior is none, and its covariance,
    # the mean over the classes, ours.
    known = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)
    known.fit(cosines(x).astype(float), labels)
    ours = learner.scores(x_test)
    theirs = known.decision_function(cosines(x_test))
    shift = (ours - theirs).mean(0)  # Of priors, the same for all.
    assert np.ptp(shift) < 1e-2
    assert ours - ours[:, :1] == pytest.approx(
        theirs - theirs[:, :1], rel=1e-3, abs=1e-2
    )


def test_products_of_cosines_are_a_gaussian_kernel():
    x, _ = draw(0, count=20)
    waves = Cosines(WIDTH, 20_000, 0.3, seed=1)(x)
    distances = np.square(x[:, None] - x).sum(-1)
    expected = np.exp(-0.5 * 0.3**2 * distances)
    assert waves @ waves.T == pytest.approx(expected, abs=0.05)
    other = Cosines(WIDTH, 20_000, 0.3, seed=2)(x)
    assert np.abs(waves - other).max() > 1e-3


def test_an_ensemble_is_the_mean_of_probabilities_of_known_classes():
    x, labels = draw(0)
    seen = labels < 3
    members = [KLDA(Cosines(WIDTH, 8, 0.5, s), CLASSES, 0.3) for s in (0, 1)]
    KLDAEnsemble(members).learn(x[seen], labels[seen])
    found = KLDAEnsemble(members).scores(x)
    assert (found[:, 3] == 0).all()
    each = []
    for member in members:
        odds = np.exp(member.scores(x)[:, :3].astype(float))
        each.append(odds / odds.sum(1, keepdims=True))
    assert found[:, :3] == pytest.approx((each[0] + each[1]) / 2, rel=1e-4)


def test_decayed_statistics_are_means_of_weighted_examples():
    x, labels = draw(0, balanced=False)
    learner = ClassMeans(WIDTH, CLASSES, 0.5)
    for part in np.array_split(np.arange(len(x)), 3):
        learner.learn(x[part], labels[part])
    weight = np.repeat([0.25, 0.5, 1.0], len(x) // 3)
    for k in range(CLASSES):
        own = labels == k
        expected = np.average(x[own], 0, weight[own])
        assert learner.means[k] == pytest.approx(expected, abs=1e-5)


def make_softmax(**options):
    return Softmax(WIDTH, CLASSES, 0, epochs=3, batch=8, rate=0.05, **options)


def learn_in_two(learner):
    x, labels = draw(0, spread=1.5)
    for pair in ((0, 1), (2, 3)):
        rows = np.isin(labels, pair)
        learner.learn(x[rows], labels[rows])
    return learner, x, labels


def accuracy(learner, x, labels, classes):
    rows = np.isin(labels, classes)
    return (learner.scores(x[rows]).argmax(1) == labels[rows]).mean()


def test_elastic_weights_without_penalty_are_naive():
    naive, x, labels = learn_in_two(make_softmax())
    same, _, _ = learn_in_two(make_softmax(penalty=0.0))
    held, _, _ = learn_in_two(make_softmax(penalty=100.0))
    assert (naive.scores(x) == same.scores(x)).all()
    assert accuracy(held, x, labels, (0, 1)) > 0.1 + accuracy(
        naive, x, labels, (0, 1)
    )


def test_the_first_task_has_nothing_to_hold():
    x, labels = draw(0)
    first, second = make_softmax(), make_softmax(penalty=100.0)
    for learner in (first, second):
        learner.learn(x, labels)
    assert (first.scores(x) == second.scores(x)).all()


def test_replay_keeps_equally_many_and_forgets_less():
    naive, x, labels = learn_in_two(make_softmax())
    learner, _, _ = learn_in_two(make_softmax(buffer=20))
    assert np.bincount(learner.kept).tolist() == [5] * 4
    assert accuracy(learner, x, labels, (0, 1)) > 0.1 + accuracy(
        naive, x, labels, (0, 1)
    )
    assert naive.kept.size == 0


def ridge(x, values, strength):
    inner = x.T @ x + strength * np.eye(x.shape[1])
    return np.linalg.solve(inner, x.T @ values)


def test_a_level_that_keeps_all_is_ridge_regression_in_any_order():
    x, labels = draw(0)
    exact = x @ ridge(x.astype(float), np.eye(CLASSES)[labels], 0.5)
    for stream in ((x, labels), by_class(x, labels)):
        memory = LevelledMemory([LevelChoice(WIDTH, 8, 1.0)], CLASSES, 0.5, 0.1)
        for part in np.array_split(np.arange(len(x)), 7):
            memory.learn(stream[0][part], stream[1][part])
        assert memory.scores(x) == pytest.approx(exact, abs=1e-4)


def test_a_level_of_period_one_is_the_normalised_delta_rule():
    x, labels = draw(0, count=70)
    memory = LevelledMemory([LevelChoice(WIDTH, 1, 0.0)], CLASSES, 0.5, 0.3)
    memory.learn(x[:10], labels[:10])
    memory.learn(x[10:], labels[10:])
    w = np.zeros((WIDTH, CLASSES))
    for row, value in zip(
        x.astype(float), np.eye(CLASSES)[labels], strict=True
    ):
        step = 0.3 / (1 + 0.3 * row @ row)
        w += step * np.outer(row, value - row @ w)
    assert memory.scores(x) == pytest.approx(x @ w, abs=1e-4)


def test_three_levels_are_their_plain_formula():
    """Sample by sample in float64, whatever the pieces of the stream."""
    x, labels = draw(0, count=46)
    levels = [
        LevelChoice(2, 1, 0.0),
        LevelChoice(4, 4, 0.5),
        LevelChoice(10, 12, 1.0),
    ]
    lam, rate = 0.5, 0.3
    memory = LevelledMemory(levels, CLASSES, lam, rate)
    for part in np.split(np.arange(46), [3, 17, 24, 25]):
        memory.learn(x[part], labels[part])

    cuts = (slice(0, 2), slice(2, 6), slice(6, 16))
    w = [np.zeros((level.width, CLASSES)) for level in levels]
    metric = [lam * np.eye(level.width) for level in levels]
    held = [[], [], []]
    for t, (row, v) in enumerate(
        zip(x.astype(float), np.eye(CLASSES)[labels], strict=True), 1
    ):
        u = v
        for i in (2, 1):
            u = u - 0 if i == 2 else u - row[cuts[2]] @ w[2]
            held[i].append((row[cuts[i]], u))
        u = u - row[cuts[1]] @ w[1]
        k = row[cuts[0]]
        w[0] += rate / (1 + rate * k @ k) * np.outer(k, u - k @ w[0])
        for i in (1, 2):
            if t % levels[i].period:
                continue
            keys = np.array([pair[0] for pair in held[i]])
            over = np.array([pair[1] for pair in held[i]]) - keys @ w[i]
            kept = levels[i].retention
            metric[i] = kept * metric[i] + (1 - kept) * lam * np.eye(len(w[i]))
            metric[i] += keys.T @ keys
            w[i] = w[i] + np.linalg.solve(metric[i], keys.T @ over)
            held[i] = []
            for j in range(i):
                w[j][:] = 0
                held[j] = []
    expected = sum(x[:, cut] @ own for cut, own in zip(cuts, w, strict=True))
    assert np.abs(w[1]).max() > 0.01 and np.abs(w[0]).max() > 0.01
    assert memory.scores(x) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_levels_share_out_the_same_weights(count):
    given = [1, 2, 4][:count], [0.0, 0.5, 1.0][:count]
    levels = split_levels(35, 1 / 16, *given)
    memory = LevelledMemory(levels, CLASSES, 1.0, 0.1)
    assert len(levels) == count and memory.parameters == 35 * CLASSES
    assert (memory.state_size > 0) == (count > 1)


# --- tasks that return ---


def test_every_text_comes_once_and_half_of_the_labels_swap():
    labels = np.arange(60, dtype=np.int32) % 6
    visits, meaning = arrange_visits(labels, 3, 4, 0.7, seed=1)
    assert len(visits) == 12
    rows = np.concatenate([visit.rows for visit in visits])
    assert sorted(rows) == list(range(60))
    for number in range(4):
        own = visits[3 * number : 3 * number + 3]
        rows = np.concatenate([visit.rows for visit in own])
        changed = np.concatenate([visit.labels for visit in own])
        # Each class comes in one visit of each round, with a quarter of its 10.
        assert set(np.bincount(labels[rows])) <= {2, 3}
        assert all(len({*labels[visit.rows]}) == 2 for visit in own)
        now = dict(zip(labels[rows], changed, strict=True))
        assert all(now[now[k]] == k for k in range(6))
        assert sum(now[k] != k for k in range(6)) == (4 if number % 2 else 0)
    assert meaning.tolist() == [now[k] for k in range(6)]


class Parrot:
    """Answers with the class that it was taught last."""

    def __init__(self):
        self.last = 0

    def learn(self, x, labels):
        self.last = labels[-1]

    def scores(self, x):
        return np.tile(np.arange(3) == self.last, (len(x), 1))


def test_answers_are_given_before_learning():
    labels = np.repeat(np.arange(3, dtype=np.int32), 8)
    examples = Examples(
        np.zeros((24, 1)), labels, np.zeros((3, 1)), labels[::8]
    )
    given = {"tasks": 3, "rounds": 2, "changing": 0.0, "block": 2}
    found = measure_stream(Parrot(), examples, 0, **given)
    # A visit is four texts of a class: of two blocks the first is answered with
    # the class before it, which only the visit after it can have in common.
    visits, _ = arrange_visits(labels, 3, 2, 0.0, 0)
    order = [int(visit.labels[0]) for visit in visits]
    expected = [0.5] * 6
    if order[2] == order[3]:
        expected[3] = 1.0
    assert found["visits"] == expected
    assert found["online"] == np.mean(expected)
    assert found["returning"] == np.mean(expected[3:])
    assert found["final"] == pytest.approx(1 / 3)


# --- script ---

TINY = (
    "--tasks=3",
    "--width=64",
    "--seeds=0,1",
    "--epochs=2",
    "--klda_width=16",
    "--members=2",
    "--middle=4",
    "--slowest=8",
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return word_table(tmp_path_factory.mktemp("data"), 20)


def test_script(finished, table):
    arguments = (*TINY, f"--data={table}")
    out, record = finished(class_incremental, *arguments)
    assert len(record["rows"]) == 2 * len(class_incremental.LEARNERS)
    for row in record["rows"]:
        R = np.array(row["R"], float)
        assert R.shape == (3, 3)
        if row["learner"] == "joint":
            assert np.isnan(R[:2]).all() and np.isfinite(R[2]).all()
            assert "forgetting" not in row
            continue
        # What was not seen is not answered.
        assert (R[np.triu_indices(3, 1)] == 0).all()
        for name in METRICS:
            for convention, value in row[name].items():
                expected = getattr(metrics, name)(R, [0] * 3, convention)
                assert value == pytest.approx(expected, abs=1e-5)
    mean = {
        name: 100
        * np.mean(
            [
                row["average_accuracy"]["gem"]
                for row in record["rows"]
                if row["learner"] == name
            ]
        )
        for name in ("3 levels", "naive")
    }
    assert f"| 3 levels | {mean['3 levels']:.1f} +- " in out
    assert mean["3 levels"] > mean["naive"]
    again, _ = finished(class_incremental, *arguments)
    assert again in out and "features of" not in again


def test_values_are_chosen_on_texts_of_training(finished, table, tmp_path):
    out, record = finished(
        *(class_incremental, *TINY, f"--data={table}"),
        *("--learners=class mean,slow level alone", "--slowest=8,4096"),
    )
    assert "4 of 8 cells" not in out  # Two are tried, four are tested.
    cells = [cell["cell"] for cell in read_cells(tmp_path)]
    tried = [cell for cell in cells if cell["part"] == "tuning"]
    assert [cell["slowest"] for cell in tried] == [8, 4096]
    # A level that never steps knows nothing.
    assert {row.get("slowest") for row in record["rows"]} == {None, 8}
    assert len(record["rows"]) == 4


def test_tasks_that_return(finished, table):
    out, record = finished(
        *(class_incremental, *TINY, f"--data={table}", "--rounds=2"),
        *("--changing=0.5", "--block=8", "--seeds=0", "--rate=1"),
    )
    rows = {row["learner"]: row for row in record["rows"]}
    assert len(rows) == len(class_incremental.LEARNERS) - 1
    assert "joint" not in rows and len(rows["naive"]["visits"]) == 6
    shown = f"| 2 levels | {100 * rows['2 levels']['online']:.1f} |"
    assert shown in out
    assert rows["2 levels"]["returning"] > 0.5


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--learners=lwf", "allowed are naive, ewc, "),
        ("--tasks=7", "--tasks=7: there are only 6 classes"),
        ("--seeds=a", "--seeds=a"),
        ("--slowest=6", "--slowest=6: must be a multiple of --middle=4"),
        ("--share=0.5", "nothing is left for the slowest of 3 levels"),
        ("--retention=2", "needs shares in [0, 1]"),
        ("--rate=much", "--rate=much: needs numbers above 0"),
        ("--shrinkage=0", "--shrinkage=0: needs numbers above 0"),
        ("--changing=2", "--changing=2"),
        ("--rounds=17", "--rounds=17: of 'a' there are only 16 texts to learn"),
        ("--learners=joint --rounds=2", "--learners=joint: learns no tasks"),
        ("--data=a.csv,b.csv,c.csv", "give one file, or train and test"),
    ],
)
def test_wrong_flags(refused, table, flag, words):
    given = (*TINY, f"--data={table}", *flag.split())
    refused(class_incremental, words, *given)
