r"""BABILong (Fig. 7, 9): facts among other text, in up to a million words.

Stories by the rules of bAbI's tasks ask where a person is (``qa1``), where a
thing is that persons carry about (``qa2``), and where it was before (``qa3``).
Their facts are scattered in text of ``--documents``, and the question comes
last. A model is trained on the answers, half of the prompts with text up to
``--length`` words and half without, and is tested on prompts of ``--lengths``
words; 0 is the story alone, filled up in front to the length of the longest.
An answer is right if it names the right place and no other, besides those of
the question (arXiv 2406.10149).

Prompts are read as a stream, so memory does not grow with their length; the
script reports the memory of the process over the longest ones.

Command (minutes a run)::

    python -m experiments.babilong --tasks=qa1 --runs=hope,deltanet
    python -m experiments.babilong --tasks=qa1 --runs=hope --lengths=1000000 \
        --tests=1

Results: ``docs/synthetic.md``. They go to ``--out``: runs as JSON files, a
Markdown table, a record and a plot. Finished runs are not repeated.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from experiments.haystacks.answers import (
    SETTINGS,
    flags_of,
    sweep_tasks,
    train_to_answer,
    write_answer,
)
from experiments.haystacks.stories import (
    PLACES,
    TASKS,
    Story,
    is_right,
    scattered,
    tell,
)
from experiments.haystacks.words import WordIds, background, common
from experiments.recall.task import make_model
from experiments.shared import flags, plot, table
from experiments.shared.records import write
from experiments.shared.report_form import Column, Paper, Plot, Report
from experiments.shared.sweep import grouped
from nl_jax.nested.level_table import count_parameters

_TEST_SEED = (0, 1)  # Differs from every integer seed.
_COMMON = 1000
_LONGEST = 96
"""Words of the longest story, with its question."""
_SETTINGS = {
    **SETTINGS,
    "length": flags.integer(128, "Words of a prompt in training.", _LONGEST),
    "tests": flags.integer(64, "Prompts of each length to test on."),
    "lengths": flags.integers([0, 128, 512, 4096], "Words of tests.", 0),
    "chunk": flags.integer(256, "Words that a model reads at once in tests."),
}
FLAGS = flags_of("babilong", TASKS, _SETTINGS)


def main(values: flags.FlagValues) -> None:
    """Runs all cells without a record and reports all results."""
    settings = flags.pick(values, _SETTINGS)
    background(values.documents)  # Raises before anything is trained.
    rows = sweep_tasks("babilong", values, settings, run_one)
    summarize(rows, settings, values.out)


def word_ids(text: Sequence[str]) -> WordIds:
    """Returns ids of all words of stories, and of the text's commonest."""
    rng = np.random.default_rng(0)
    stories = [tell(task, rng) for task in TASKS for _ in range(200)]
    told = [w for story in stories for fact in story.facts for w in fact]
    asked = [word for story in stories for word in story.question]
    return WordIds(sorted({*told, *asked, *PLACES, *common(text, _COMMON)}))


def draw_answers(task, rng, count, length, kind, words):
    """Returns prompts to train on, filled up in front, and answers."""
    prompts = np.zeros((count, length), np.int32)
    answers = np.zeros((count, 2), np.int32)
    for row in range(count):
        story = tell(task, rng)
        size = (length - _words(story)) * int(rng.integers(2))
        parts = scattered(story, rng, kind, size)
        ids = [i for part in parts for i in words.encode(part)]
        prompts[row, length - len(ids) :] = ids
        answers[row] = words.encode([story.answer, "."])
    return prompts, answers


def streamed(
    stories: Sequence[Story],
    rng: np.random.Generator,
    kind: str,
    words: WordIds,
    length: int,
    chunk: int,
) -> Iterator[np.ndarray]:
    """Yields the prompts of stories in parts, ids ``[N, <= chunk]``."""
    length = max(length, *map(_words, stories), 1)
    rows = [
        _ids(story, seed, kind, words, length - _words(story))
        for story, seed in zip(stories, rng.spawn(len(stories)), strict=True)
    ]
    if length == max(map(_words, stories)):  # No text at all.
        rows = [
            _filled(story, words, length - _words(story)) for story in stories
        ]
    for start in range(0, length, chunk):
        size = min(chunk, length - start)
        parts = [[next(row) for _ in range(size)] for row in rows]
        yield np.array(parts, np.int32)


def _ids(story, rng, kind, words, size):
    for part in scattered(story, rng, kind, size):
        yield from words.encode(part)


def _filled(story, words, size):
    yield from [0] * size
    for part in [*story.facts, story.question]:
        yield from words.encode(part)


def _words(story):
    return sum(map(len, story.facts)) + len(story.question)


def run_one(run, task, seed, settings):
    """Trains once; returns scores, and memory over the longest prompts."""
    kind = settings["documents"]
    words = word_ids(background(kind))
    model = make_model(run, len(words), d_model=settings["width"])
    shape = settings["batch"], settings["length"], kind, words
    variables, curve = train_to_answer(
        model,
        lambda rng: draw_answers(task, rng, *shape),
        seed,
        settings,
        f"{task} {run} seed {seed}",
    )
    scores, memory, chunk = [], [], settings["chunk"]
    for length in settings["lengths"]:
        rng = np.random.default_rng(_TEST_SEED)
        stories = [tell(task, rng) for _ in range(settings["tests"])]
        parts = streamed(stories, rng, kind, words, length, chunk)
        written = write_answer(model, variables, parts, 2, chunk)
        right = [
            is_right(words.decode(ids), story.answer, story.question)
            for ids, story in zip(written.ids, stories, strict=True)
        ]
        scores.append(round(100 * float(np.mean(right)), 1))
        # The first tenth compiles, and fills caches.
        after = written.resident[len(written.resident) // 10 :]
        memory.append([after[0], max(after)])
        print(
            f"{task} {run} seed {seed} {length:,} words: {scores[-1]} %, "
            f"{after[0] / 1e6:.0f} to {max(after) / 1e6:.0f} MB",
            flush=True,
        )
    return {
        "scores": scores,
        "memory": memory,
        "curve": curve,
        "parameters": count_parameters(variables),
    }


def summarize(rows, settings, out):
    """Writes a table of tasks, runs and lengths, the record and a plot."""
    cells, curves = [], {}
    for (task, run), own in grouped(rows, "task", "run").items():
        found = np.array([row["scores"] for row in own])
        growth = [(row["memory"][-1][1] - row["memory"][-1][0]) for row in own]
        shown = [table.mean_error(list(column), ".1f") for column in found.T]
        grown = f"{max(growth) / 1e6:.1f}"
        cells.append([task, run, f"{own[0]['parameters']:,}", *shown, grown])
        places = [max(length, 1) for length in settings["lengths"]]
        curves.setdefault(task, {})[run] = (places, found.mean(0))
    head = ["task", "run", "parameters"]
    head += [f"{length:,} words" for length in settings["lengths"]]
    lines = table.markdown([*head, "MB more"], cells)
    lines += [
        "",
        "Percent, mean ± standard error over seeds; memory at most, more than "
        "after a tenth of the last length.",
    ]
    panels = [
        plot.Panel(own, "words", "right, %", task, ("log", "linear"), "o-")
        for task, own in curves.items()
    ]
    figure = plot.curves(*panels, size=(3 * len(panels) + 2, 3), legend=None)
    write(out, "babilong", lines, {"settings": settings, "rows": rows}, figure)


def _longest(rows):
    """Returns each length's score, and the memory that reading added."""
    lines = []
    for (task, run), own in grouped(rows, "task", "run").items():
        for i, length in enumerate(own[0]["lengths"]):
            shares = [row["scores"][i] for row in own]
            memory = [row["memory"][i] for row in own]
            more = max(most - first for first, most in memory) / 1e6
            shown = table.mean_error(shares, ".1f")
            lines.append([task, run, f"{length:,}", shown, f"{more:.1f}"])
    return ["task", "run", "words", "right, %", "MB more"], lines


REPORT = Report(
    "BABILong: facts among other text",
    ("task", "run"),
    {
        "shortest, %": Column(lambda row: row["scores"][0], ".1f"),
        "longest, %": Column(lambda row: row["scores"][-1], ".1f"),
        "parameters": Column("parameters", ",.0f"),
    },
    [
        Plot(
            "scores",
            "right, %",
            lambda row: [max(length, 1) for length in row["lengths"]],
            "words",
            scales=("log", "linear"),
        )
    ],
    # Its models are pretrained ones of billions of parameters.
    Paper("the paper's Fig. 9", {"width": 2048}),
    extra=_longest,
    note="Memory is that of the process, more than after a tenth of a length.",
)
