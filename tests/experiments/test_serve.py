"""A server with several users: each is answered as if it were alone."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from experiments.serving import serve
from experiments.serving.engine import Engine
from experiments.serving.handler import Server
from experiments.serving.requests import Limits
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
def serving(loaded, folder, most=100, host="127.0.0.1", **limits):
    sessions = Sessions(folder, loaded, most)
    limits = LIMITS._replace(**limits)
    with Server((host, 0), loaded, sessions, limits) as server:
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
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(host, port, timeout=60)
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


def begin(server, path, body, size=None):
    """Sends a request, which may lack the end; returns the connection."""
    client = socket.create_connection(server.server_address, timeout=60)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size or len(body)}\r\n\r\n{body}".encode()
    )
    return client


def received(client):
    """Returns all of an answer."""
    with client, client.makefile("rb") as file:
        return file.read()


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
    client = begin(server, "/sessions/ann", '{"tokens": 40}')
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
    for host in ("[::1]:80", "[::1]", "LOCALHOST", "LocalHost:80", "127.9.9.9"):
        assert ask(server, "/", headers={"Host": host})[0] == 200
    assert ask(server, "/", method="PUT")[0] == 501


def test_limits(loaded, tmp_path, monkeypatch):
    limits = {"most": 1, "max_seconds": 0.3, "max_requests": 1}
    with serving(loaded, tmp_path, **limits) as server:
        server.sessions.put("ann", server.engine.sampler().state)
        for path, body in (
            ("/sessions/new", {"text": "x", "tokens": 0}),
            ("/sessions/ann/fork", {"to": "new"}),
        ):
            status, (line,) = ask(server, path, body)
            assert status == 507 and "1 sessions, which is" in line["error"]
        sampler = server.engine.sampler
        monkeypatch.setattr(
            server.engine,
            "sampler",
            lambda *options: time.sleep(0.3) or sampler(*options),
        )
        status, (line,) = ask(server, "/sessions/ann", {"text": "xyz"})
        assert status == 503 and "only 0 of the text's 3" in line["error"]
        status, (line,) = ask(server, "/sessions/ann", {"tokens": 2})
        assert (status, line["finish"], line["drawn"]) == (200, "time", 0)
        with server.places:
            status, (line,) = ask(server, "/sessions/ann", {"tokens": 2})
            assert status == 503 and "1 requests are at work" in line["error"]


def test_requests_at_the_same_time_begin_no_more_sessions_than_allowed(
    loaded, tmp_path, monkeypatch
):
    with serving(loaded, tmp_path, most=2) as server:
        generate(server, "ann", "x", 0)
        draw, go_on = server.engine.draw, threading.Event()
        monkeypatch.setattr(
            server.engine,
            "draw",
            lambda *given, **options: (
                go_on.wait(10) and draw(*given, **options)
            ),
        )
        body = '{"text": "x", "tokens": 1}'
        slow = begin(server, "/sessions/bob", body)
        assert slow.recv(8) == b"HTTP/1.1"  # It is about to draw.
        for path, sent in (("cy", body), ("ann/fork", {"to": "cy"})):
            status, (line,) = ask(server, f"/sessions/{path}", sent)
            assert status == 507 and "2 sessions" in line["error"]
        go_on.set()
        assert b"finish" in received(slow)
        assert server.sessions.names() == ["ann", "bob"]
        # A session that could not be begun leaves its room to others.
        assert ask(server, "/sessions/bob", method="DELETE")[0] == 200
        assert ask(server, "/sessions/cy", {"tokens": 1})[0] == 400
        generate(server, "dee", "x", 0)


def test_slow_clients_take_no_place_and_are_refused_in_time(loaded, tmp_path):
    with serving(loaded, tmp_path, max_seconds=1.0, max_requests=1) as server:
        start = time.monotonic()
        body = begin(server, "/sessions/a", "{", 1000)
        refused = begin(server, "/sessions/a", "{", 100_000)
        head = socket.create_connection(server.server_address, timeout=60)
        head.sendall(b"GET / HTTP/1.1\r\nX: ")
        assert ask(server, "/")[0] == 200
        for _ in range(3):
            time.sleep(0.05)
            for client in (body, refused, head):
                client.sendall(b" ")
        assert b" 408 " in received(body)
        assert b" 413 " in received(refused)
        assert received(head) == b""
        assert time.monotonic() - start < 5


def test_a_client_that_left_before_the_end_changes_nothing(server, monkeypatch):
    generate(server, "ann", "hello")
    assert ask(server, "/sessions/ann/fork", {"to": "cy"})[0] == 201
    before, read = content(server, "ann"), server.engine.read
    gone = threading.Event()
    monkeypatch.setattr(
        server.engine, "read", lambda *given: gone.wait(60) and read(*given)
    )
    paths, body = ("/sessions/ann", "/sessions/b"), '{"text": "x", "tokens": 0}'
    clients = [begin(server, path, body) for path in paths]
    while len(server.sessions._held) < 2:
        time.sleep(0.01)
    # A third announces more than it sends.
    clients.append(begin(server, "/sessions/cy/reset", "{}", 3))
    for client in clients:
        client.close()
    gone.set()
    while server.sessions._held:
        time.sleep(0.01)
    assert server.sessions.names() == ["ann", "cy"]
    assert content(server, "ann") == content(server, "cy") == before


def test_a_server_that_stops_says_so_to_its_clients(
    loaded, tmp_path, monkeypatch, capfd
):
    stopped, ended = threading.Event(), []
    with serving(loaded, tmp_path) as server:
        generate(server, "ann", "x", 0)
        before = content(server, "ann")
        draw, close = server.engine.draw, server.engine.close

        def slow(*given, **options):
            for token in draw(*given, **options):
                yield token
                stopped.wait(60)
                time.sleep(0.1)
                ended.append(token)

        monkeypatch.setattr(server.engine, "draw", slow)
        monkeypatch.setattr(
            server.engine, "close", lambda: (close(), stopped.set())
        )
        client = begin(server, "/sessions/ann", '{"tokens": 9}')
        while b"token" not in client.recv(1000):
            pass
    assert ended  # The server has waited for what it says to its clients.
    *_, last = received(client).splitlines()
    assert "server is stopping" in json.loads(last)["error"]
    assert content(server, "ann") == before
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_no_session_is_neither_listed_nor_counted(loaded, tmp_path):
    (tmp_path / "odd.npz").mkdir()
    (tmp_path / "Bad.Name.npz").touch()
    with serving(loaded, tmp_path, most=1) as server:
        generate(server, "ann", "x", 0)
        assert server.sessions.names() == ["ann"]
        for path, body, method in (
            ("odd", {"text": "x"}, None),
            ("odd", None, "DELETE"),
            ("odd/state", None, None),
            ("odd/reset", {}, None),
            ("ann/fork", {"to": "odd"}, None),
        ):
            status, (line,) = ask(server, f"/sessions/{path}", body, method)
            assert status == 409 and "odd.npz in" in line["error"]


def test_files_that_fail_are_an_answer(server, tmp_path, monkeypatch):
    gone = tmp_path / "gone.npz"
    monkeypatch.setattr(server.sessions, "existing", lambda name: gone)
    for path, method in (("a/state", "GET"), ("a", "DELETE")):
        status, (line,) = ask(server, f"/sessions/{path}", method=method)
        assert status == 500 and "No such file" in line["error"]


def test_no_client_connects_before_all_is_compiled(
    loaded, tmp_path, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    tried = []

    def warm_up(engine):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        tried.append(engine)

    monkeypatch.setattr(Engine, "warm_up", warm_up)
    with Server(address, loaded, Sessions(tmp_path, loaded), LIMITS) as server:
        socket.create_connection(address).close()
        assert tried == [server.engine]


def test_a_server_listens_on_ipv6(loaded, tmp_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving(loaded, tmp_path, host="::1") as server:
        assert server.server_address[0] == "::1"
        assert ask(server, "/")[0] == 200


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
            (["--host=a..b"], "--host=a..b"),
            (["--in_memory=1"], "in_memory"),
            (["more"], "unexpected argument 'more'"),
        ):
            status, _, errors = script(serve, str(workdir), states, *flags)
            assert status == 2 and errors.count("\n") == 1 and words in errors
    with locked(tmp_path / "states"):
        status, _, errors = script(serve, str(workdir), states)
        assert status == 2 and "give another --states" in errors
