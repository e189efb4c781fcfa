"""lm-eval's view of a model, with tasks that need no download."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nl_jax.continual import harness
from nl_jax.continual.harness import HarnessModel
from nl_jax.data import BPETokenizer, ByteTokenizer
from nl_jax.errors import InputError
from nl_jax.models import build

MODEL = build("lstm", d_model=8, n_heads=1, n_layers=1)
APPLY = jax.jit(MODEL.apply)


@functools.cache
def parameters(scale=1.0):
    drawn = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), int))
    return jax.tree.map(lambda a: scale * a, drawn)


@pytest.fixture
def adapted():
    return HarnessModel(MODEL, parameters(3.0), ByteTokenizer(), chunk=4)


@functools.cache
def log_probabilities(text):
    """Of the byte at each place, all read at once; the first is uniform."""
    ids = np.frombuffer(text.ljust(96), np.uint8)[None].astype(int)
    logits, _ = APPLY(parameters(3.0), ids)  # One shape, compiled once.
    found = np.asarray(jax.nn.log_softmax(logits[0, : len(text)], -1))
    return np.concatenate([np.full((1, 256), -np.log(256)), found])


def expected(context, continuation):
    text = (context + continuation).encode()
    table, start = log_probabilities(text), len(context.encode())
    places = range(start, len(text))
    greedy = all(table[i].argmax() == text[i] for i in places)
    return sum(table[i, text[i]] for i in places), greedy


def measure(adapted, docs, **config):
    """Returns lm-eval's results for a task that exists only here."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate

    docs = Dataset.from_list(docs)
    task = ConfigurableTask(
        config={
            "task": "inline",
            "custom_dataset": lambda **_: {"test": docs},
            "test_split": "test",
            **config,
        }
    )
    found = evaluate(adapted, {"inline": task}, bootstrap_iters=0)
    return found["results"]["inline"], found["samples"]["inline"]


@pytest.mark.filterwarnings("ignore")  # Of lm-eval and what it imports.
def test_a_uniform_byte_model_needs_eight_bits_per_byte():
    uniform = HarnessModel(MODEL, parameters(0.0), ByteTokenizer())
    results, _ = measure(
        uniform,
        [{"text": "Once upon a time"}, {"text": "é ü"}],
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    assert results["bits_per_byte,none"] == pytest.approx(8.0)


@pytest.mark.filterwarnings("ignore")
def test_choices_are_scored_after_their_context(adapted):
    docs = [
        {"question": "The sky is", "choices": ["blue", "red"], "answer": 0},
        {"question": "Two and two", "choices": ["is four", "no"], "answer": 1},
    ]
    results, samples = measure(
        adapted,
        docs,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{answer}}",
        metric_list=[{"metric": "acc"}],
    )
    right = []
    for doc in docs:
        scores = [
            expected(doc["question"], f" {choice}") for choice in doc["choices"]
        ]
        right.append(np.argmax([s for s, _ in scores]) == doc["answer"])
        found = next(s for s in samples if s["doc"] == doc)["filtered_resps"]
        assert [float(s) for s, _ in found] == pytest.approx(
            [s for s, _ in scores], rel=1e-4
        )
    assert results["acc,none"] == np.mean(right)


def greedy(context, count):
    """The likeliest bytes, each found by reading everything again."""
    text = context.encode()
    for _ in range(count):
        text += bytes([log_probabilities(text)[-1].argmax()])
    return text[len(context.encode()) :]


@pytest.mark.filterwarnings("ignore")
def test_generation_is_greedy_and_ends_before_the_first_stop(adapted):
    docs, written = [{"text": "Once"}], greedy("Once", 8)
    stop = next(written[i : i + 1] for i in range(1, 8) if written[i] < 128)

    def run(until):
        _, (sample,) = measure(
            adapted,
            docs,
            output_type="generate_until",
            doc_to_text="{{text}}",
            doc_to_target="",
            generation_kwargs={"until": until, "max_gen_toks": 8},
            metric_list=[{"metric": "exact_match"}],
        )
        return sample["resps"][0][0]

    for until, wanted in (
        (["none of it"], written),
        (["never", stop.decode()], written[: written.index(stop)]),
    ):
        assert run(until) == wanted.decode("utf-8", "replace")


def test_equal_requests_are_sampled_one_after_another(adapted):
    options = {"do_sample": True, "max_gen_toks": 12}
    drawn = {adapted._generate("Once", options) for _ in range(3)}
    assert len(drawn) == 3
    assert adapted._generate("Once", {"max_gen_toks": 3}) == greedy(
        "Once", 3
    ).decode("utf-8", "replace")


def test_a_long_context_is_read_whole_and_only_once(adapted, monkeypatch):
    read = []
    stream = harness.stream
    monkeypatch.setattr(
        harness,
        "stream",
        lambda m, v, ids, *a, **k: (
            read.append(len(ids)) or stream(m, v, ids, *a, **k)
        ),
    )
    context = "a long story " * 5
    pairs = [(context, "ends"), (context, "never ends"), ("b", "")]
    for context, continuation in pairs:
        total, likeliest = adapted.score(context, continuation)
        wanted, was_greedy = expected(context.rstrip(), f" {continuation}")
        if continuation:
            assert total == pytest.approx(wanted, rel=1e-4)
            assert likeliest == was_greedy
        else:
            assert (total, likeliest) == (0.0, True)
    # 64 bytes once, then the space and each continuation.
    assert read == [64, 5, 11, 1, 0]


def test_a_continuation_that_is_likeliest_is_known_as_such(adapted):
    text = greedy("Once", 3).decode("latin1")
    bits, likeliest = adapted.score(b"Once", text.encode("latin1"))
    assert likeliest and bits > -3 * np.log(256)
    assert not adapted.score(b"Once", text.encode("latin1") + b"\x00\x01")[1]


def test_a_prefix_comes_before_every_text():
    given = MODEL, parameters(3.0), ByteTokenizer()
    model = HarnessModel(*given, prefix=(10,))
    table = log_probabilities(b"\nab")
    wanted = table[1, ord("a")] + table[2, ord("b")]
    assert model.score("", "ab")[0] == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(InputError, match="prefix"):
        HarnessModel(*given, prefix=(256,))


def test_a_token_over_the_end_of_the_context():
    tokenizer = BPETokenizer.train(b"banana band " * 50, 262)
    model = HarnessModel(
        build("lstm", vocab_size=264, d_model=8, n_heads=1, n_layers=1),
        None,
        tokenizer,
    )
    read = []
    model._after = lambda text, ids: read.append((text, ids))
    model._read = lambda ids, last: read.append(ids) or ()
    model.score("ba ", "nana")
    (text, before), ids = read
    assert text == b"ba" and tokenizer.decode(before) == b"ba"
    assert tokenizer.decode(ids) == b" nana"
