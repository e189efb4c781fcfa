"""A server with several users: each is answered as if it were alone."""

import contextlib
import http.client
import json
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from experiments.serving import serve
from experiments.serving.handler import Limits, Server
from experiments.serving.sessions import Sessions
from nl_jax.continual import Sampler, SamplerState, load_state
from nl_jax.data import ByteTokenizer
from nl_jax.training import LoadedModel
from nl_jax.training.process import locked
from tests.continual.conftest import LEVELS, make

LIMITS = Limits(2000, max_tokens=100, max_seconds=60.0, max_requests=8)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def loaded():
    model, variables, _ = make("hope-attention", vocab_size=256, cms=LEVELS)
    return LoadedModel(model, variables, ByteTokenizer(), {"step": 3})


@contextlib.contextmanager
def serving(loaded, folder, most=100, **limits):
    sessions = Sessions(folder, loaded, most)
    limits = LIMITS._replace(**limits)
    with Server(("127.0.0.1", 0), loaded, sessions, limits) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(loaded, tmp_path):
    with serving(loaded, tmp_path / "states") as server:
        yield server


def ask(server, path, body=None, method=None, headers=JSON):
    """Returns the status of the answer and its lines."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    method = method or ("GET" if body is None else "POST")
    content = json.dumps(body) if isinstance(body, dict) else body
    connection.request(method, path, content, headers)
    response = connection.getresponse()
    lines = [json.loads(line) for line in response.read().splitlines()]
    connection.close()
    return response.status, lines


def generate(server, name, text="", tokens=8, **options):
    """Returns the tokens drawn for a session, and the last line."""
    body = {"text": text, "tokens": tokens, **options}
    status, (*drawn, last) = ask(server, f"/sessions/{name}", body)
    assert status == 200 and last["finish"] == "tokens", last
    assert last["drawn"] == tokens == len(drawn)
    return [line["token"] for line in drawn], last


def content(server, name):
    return server.sessions.existing(name).read_bytes()


TALKS = {
    name: [
        {"text": f"{name} begins. ", "tokens": 9, "seed": seed},
        {"text": f"More of {name}, ", "tokens": 6, "temperature": 1.5},
        {"tokens": 5, "top_p": 0.5},
    ]
    for seed, name in enumerate(("ann", "bob", "cy-1", "d_2", "3e"))
}


def talk(server, name):
    return [generate(server, name, **request)[0] for request in TALKS[name]]


def test_users_at_the_same_time_are_answered_as_each_alone(
    loaded, server, tmp_path
):
    with ThreadPoolExecutor(len(TALKS)) as users:
        together = dict(
            zip(TALKS, users.map(lambda n: talk(server, n), TALKS), strict=True)
        )
    assert ask(server, "/sessions")[1] == [{"sessions": sorted(TALKS)}]
    assert len({str(tokens) for tokens in together.values()}) == len(TALKS)
    for name in TALKS:
        with serving(loaded, tmp_path / name) as alone:
            assert talk(alone, name) == together[name]
            assert content(alone, name) == content(server, name)


def test_what_is_drawn_is_what_a_sampler_draws(loaded, server):
    drawn, last = generate(server, "ann", "some text", 12, seed=5)
    sampler = Sampler(loaded.model, loaded.variables, seed=5)
    sampler.feed(b"some text")
    expected = list(sampler.draw(12, temperature=0.8, top_p=0.95))
    assert drawn == expected
    assert last["read"] == 9
    # A new session expects all 256 bytes alike, which costs 8 bits.
    _, one = generate(server, "new", "x", 0)
    assert one["bits_per_byte"] == pytest.approx(8)


def test_text_is_cut_between_characters(loaded, server, monkeypatch):
    def draw(sampler, count, deadline, **options):
        yield from "é!".encode() + b"\xc3"

    monkeypatch.setattr(server.engine, "draw", draw)
    _, lines = ask(server, "/sessions/a", {"text": "x", "tokens": 4})
    assert [line["text"] for line in lines] == ["", "é", "!", "", "\ufffd"]


def test_a_fork_knows_the_same_and_goes_its_own_way(server):
    generate(server, "ann", "what ann knows")
    assert ask(server, "/sessions/ann/fork", {"to": "bob"})[0] == 201
    assert content(server, "ann") == content(server, "bob")
    before = content(server, "ann")
    other, _ = generate(server, "bob", "and more")
    assert content(server, "ann") == before
    again, _ = generate(server, "ann", "and more")
    assert again == other


def test_a_reset_session_is_a_new_one(server):
    first = generate(server, "ann", "hello")
    assert generate(server, "ann", "hello") != first
    # Its state need not be readable.
    server.sessions.existing("ann").write_bytes(b"damaged")
    status, (line,) = ask(server, "/sessions/ann", {"tokens": 1})
    assert status == 409 and "ann.npz is damaged" in line["error"]
    assert ask(server, "/sessions/ann/reset", {})[0] == 200
    assert generate(server, "ann", "hello") == first


def test_sessions_outlive_the_server(loaded, tmp_path):
    with serving(loaded, tmp_path / "a") as server:
        generate(server, "ann", "hello")
        ask(server, "/sessions/ann/fork", {"to": "bob"})
        expected = generate(server, "ann", " again")
    with serving(loaded, tmp_path / "a") as server:
        assert generate(server, "bob", " again") == expected
    later = loaded._replace(meta={"step": 4})
    with serving(later, tmp_path / "a") as server:
        status, (line,) = ask(server, "/sessions/ann", {"tokens": 1})
        assert status == 409 and "meta.step=3, this one 4" in line["error"]
    other = jax.tree.map(lambda leaf: leaf + 1, loaded.variables)
    with serving(loaded._replace(variables=other), tmp_path / "a") as server:
        status, (line,) = ask(server, "/sessions/ann", {"tokens": 1})
        assert (
            status == 409
            and "another model: it has meta.weights" in (line["error"])
        )


def test_a_state_is_a_file_for_the_user(loaded, server, tmp_path):
    generate(server, "ann", "hello")
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", "/sessions/ann/state")
    found = connection.getresponse().read()
    connection.close()
    path = tmp_path / "ann.npz"
    path.write_bytes(found)
    sampler = Sampler(loaded.model, loaded.variables)
    sampler.state = load_state(
        *(path, loaded.model, loaded.variables),
        kind=SamplerState,
        meta=loaded.state_meta,
    )
    drawn = list(sampler.draw(8, temperature=0.8, top_p=0.95))
    assert drawn == generate(server, "ann")[0]
    assert ask(server, "/sessions/ann", method="DELETE")[0] == 200
    assert ask(server, "/sessions")[1] == [{"sessions": []}]


def test_a_client_that_leaves_changes_nothing(server, monkeypatch):
    generate(server, "ann", "hello")
    before, draw = content(server, "ann"), server.engine.draw
    gone, tried = threading.Event(), []

    def slow(sampler, count, deadline, **options):
        for token in draw(sampler, count, deadline, **options):
            yield token
            gone.wait(60)
            tried.append(token)

    monkeypatch.setattr(server.engine, "draw", slow)
    client = socket.create_connection(server.server_address)
    head = "POST /sessions/ann HTTP/1.1\r\nContent-Type: application/json\r\n"
    body = '{"tokens": 40}'
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    while b"token" not in client.recv(1000):
        pass
    busy = ask(server, "/sessions/ann", {"tokens": 1})
    assert busy[0] == 409 and "ann is at work" in busy[1][0]["error"]
    # Closes at once, without waiting for what was sent.
    client.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    client.close()
    gone.set()
    monkeypatch.undo()
    while ask(server, "/sessions/ann/fork", {"to": "copy"})[0] == 409:
        pass
    assert len(tried) < 40
    assert content(server, "ann") == content(server, "copy") == before


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/sessions/a", {"tokens": 1}, 400, "text is empty"),
        ("/sessions/a", {"text": 3}, 400, "text must be"),
        ("/sessions/a", '{"text": "\\ud800"}', 400, "not valid Unicode"),
        ("/sessions/a", {"text": "x", "tokens": 101}, 400, "tokens=101 must"),
        ("/sessions/a", {"text": "x", "tokens": -1}, 400, "tokens=-1 must"),
        ("/sessions/a", {"text": "x", "tokens": True}, 400, "tokens=True"),
        ("/sessions/a", {"text": "x", "top_p": 0}, 400, "top_p=0 must"),
        ("/sessions/a", {"text": "x", "top_p": 1.5}, 400, "top_p=1.5 must"),
        ("/sessions/a", '{"temperature": NaN}', 400, "temperature=nan must"),
        ("/sessions/a", {"temperature": "1"}, 400, "temperature='1' must"),
        ("/sessions/a", {"text": "x", "seed": 2**31}, 400, "seed=2147483648"),
        ("/sessions/a", {"txt": "x"}, 400, "'txt' is not a field"),
        ("/sessions/a", "[" * 1999, 400, "not JSON"),
        ("/sessions/a", "[]", 400, "must be a JSON object"),
        ("/sessions/a", " " * 100_000, 413, "100000 bytes; allowed are 2000"),
        ("/sessions/A", {"text": "x"}, 400, "the name 'A'"),
        ("/sessions/..", {"text": "x"}, 400, "the name '..'"),
        ("/sessions/%2e", {"text": "x"}, 400, "the name '%2e'"),
        (f"/sessions/{'a' * 65}", {"text": "x"}, 400, "the name 'aaa"),
        ("/sessions/../a", {"text": "x"}, 405, "is not one of GET /"),
        ("/elsewhere", None, 404, "is not one of GET /"),
        ("/sessions/none/state", None, 404, "none does not exist"),
        ("/sessions/none/reset", {}, 404, "none does not exist"),
        ("/sessions/none/fork", {"to": "a"}, 404, "none does not exist"),
        ("/sessions/ann/fork", {"to": "ann"}, 409, "ann exists"),
        ("/sessions/ann/fork", {"to": "../a"}, 400, "the name '../a'"),
        ("/sessions/ann/fork", {"to": ["a"]}, 400, "the name"),
        ("/sessions/ann/fork", {}, 400, "the name 'None'"),
    ],
)
def test_wrong_requests_are_one_line(ready, path, body, status, words):
    server, before = ready
    found, (line,) = ask(server, path, body)
    assert found == status and words in line["error"], line
    assert ask(server, "/sessions")[1] == [{"sessions": ["ann"]}]
    assert content(server, "ann") == before


@pytest.fixture(scope="module")
def ready(loaded, tmp_path_factory):
    with serving(loaded, tmp_path_factory.mktemp("states")) as server:
        generate(server, "ann", "hello")
        yield server, content(server, "ann")


def test_requests_of_other_origins_are_refused(ready):
    server, _ = ready
    for headers, status in (
        ({}, 415),
        ({"Content-Type": "text/plain"}, 415),
        (JSON | {"Host": "elsewhere.example:80"}, 403),
        (JSON | {"Host": "["}, 403),
        (JSON | {"Content-Length": "-1"}, 400),
    ):
        found, (line,) = ask(server, "/sessions/ann", "{}", None, headers)
        assert found == status and line["error"]
    assert ask(server, "/", headers={"Host": "[::1]:80"})[0] == 200
    assert ask(server, "/", method="PUT")[0] == 501


def test_limits(loaded, tmp_path):
    limits = {"most": 1, "max_seconds": 0.0, "max_requests": 1}
    with serving(loaded, tmp_path, **limits) as server:
        server.sessions.put("ann", server.engine.sampler().state)
        for path, body in (
            ("/sessions/new", {"text": "x", "tokens": 0}),
            ("/sessions/ann/fork", {"to": "new"}),
        ):
            status, (line,) = ask(server, path, body)
            assert status == 507 and "1 sessions, which is" in line["error"]
        status, (line,) = ask(server, "/sessions/ann", {"text": "xyz"})
        assert status == 503 and "only 0 of the text's 3" in line["error"]
        status, (line,) = ask(server, "/sessions/ann", {"tokens": 2})
        assert (status, line["finish"], line["drawn"]) == (200, "time", 0)
        with server.places:
            status, (line,) = ask(server, "/sessions/ann", {"tokens": 2})
            assert status == 503 and "1 requests are at work" in line["error"]


def test_the_command(script, workdir, tmp_path, monkeypatch):
    def interrupt(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupt)
    states = f"--states={tmp_path / 'states'}"
    status, out, _ = script(serve, str(workdir), states, "--port=0")
    assert status == 0
    assert "serving step 4 on http://127.0.0.1:" in out and "stopped" in out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flags, words in (
            ([f"--port={port}"], f"--port={port}: Address already in use"),
            (["--port=70000"], "--port=70000"),
            (["more"], "unexpected argument 'more'"),
        ):
            status, _, errors = script(serve, str(workdir), states, *flags)
            assert status == 2 and errors.count("\n") == 1 and words in errors
    with locked(tmp_path / "states"):
        status, _, errors = script(serve, str(workdir), states)
        assert status == 2 and "give another --states" in errors
