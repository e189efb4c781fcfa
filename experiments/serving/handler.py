"""HTTP requests: what they may ask, and how they are answered."""

import codecs
import contextlib
import http.server
import ipaddress
import json
import math
import threading
import time
from http import HTTPStatus
from typing import Any, NamedTuple

from experiments.serving.sessions import Engine, RefusedError, Sessions
from nl_jax.checks import check_count
from nl_jax.errors import InputError
from nl_jax.training import LoadedModel

_ROUTES = (
    "GET /",
    "GET /sessions",
    "POST /sessions/NAME",
    "GET /sessions/NAME/state",
    "POST /sessions/NAME/fork",
    "POST /sessions/NAME/reset",
    "DELETE /sessions/NAME",
)
_DISCARDED = 2**24
"""Bytes of a refused body that are read all the same.

A client that is still sending when the connection closes may miss the answer.
"""


class Limits(NamedTuple):
    """What a request may cost, and how many may run at the same time."""

    max_bytes: int
    max_tokens: int
    max_seconds: float
    max_requests: int


class Generation(NamedTuple):
    """Text to read, and tokens to draw after it."""

    text: str = ""
    tokens: int = 100
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None
    """Starts the random numbers of the session anew."""

    def check(self, limits: Limits) -> bytes:
        """Returns the text in bytes, after checking all fields."""
        check_count("tokens", self.tokens, 0)
        _check_number("tokens", self.tokens, limits.max_tokens)
        _check_number("temperature", self.temperature, 1000)
        _check_number("top_p", self.top_p, 1)
        if not self.top_p:
            raise InputError("top_p=0 must be above 0; 1 allows every token")
        if self.seed is not None:
            check_count("seed", self.seed, 0)
            _check_number("seed", self.seed, 2**31 - 1)
        if not isinstance(self.text, str):
            raise InputError("text must be a string")
        try:
            return self.text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text is not valid Unicode: {error}") from error


class Server(http.server.ThreadingHTTPServer):
    """Server of one model, with a thread for each connection.

    Args:
        address: host and port; 0 takes any port that is free.
        loaded: the model, and its tokenizer.
        sessions: states of its users.
        limits: of requests.
    """

    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        loaded: LoadedModel,
        sessions: Sessions,
        limits: Limits,
    ):
        self.loaded, self.sessions, self.limits = loaded, sessions, limits
        self.places = threading.BoundedSemaphore(limits.max_requests)
        self.engine = Engine(loaded)
        # An address that cannot be used closes the server at once.
        super().__init__(address, _Handler)

    def server_close(self) -> None:
        """Frees the port, and ends the thread that computes."""
        super().server_close()
        self.engine.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request and closes the connection."""

    protocol_version = "HTTP/1.1"
    timeout = 10  # Seconds that a client may neither send nor take anything.
    server: Server
    unread = 0
    streaming = False

    def answer(self):
        # What is left of a refused body must not be read as a request.
        self.close_connection = True
        # A client that goes away changes nothing.
        with contextlib.suppress(ConnectionError, TimeoutError):
            try:
                self._answer()
            except RefusedError as error:
                self.send_error(error.status, str(error))
            except InputError as error:
                self.send_error(HTTPStatus.BAD_REQUEST, str(error))

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def _answer(self):
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise InputError(f"Content-Length={length[:80]!r} is no number")
        self.unread = int(length)
        self._check_host()
        limits = self.server.limits
        if not self.server.places.acquire(blocking=False):
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{limits.max_requests} requests are at work, which is the "
                "limit; try again later",
            )
        try:
            self._route(self.path.partition("?")[0].strip("/").split("/"))
        finally:
            self.server.places.release()

    def _route(self, parts):
        sessions = self.server.sessions
        match self.command, *parts:
            case "GET", "":
                self._reply(HTTPStatus.OK, self._about())
            case "GET", "sessions":
                self._reply(HTTPStatus.OK, {"sessions": sessions.names()})
            case "GET", "sessions", name, "state":
                content = sessions.existing(name).read_bytes()
                self._send_head(HTTPStatus.OK, "application/octet-stream")
                self.wfile.write(content)
            case "POST", "sessions", name:
                self._generate(
                    name, Generation(**self._body(*Generation._fields))
                )
            case "POST", "sessions", name, "fork":
                sessions.fork(name, self._body("to").get("to"))
                self._reply(HTTPStatus.CREATED, {"forked": name})
            case "POST", "sessions", name, "reset":
                self._body()
                sessions.reset(name, self.server.engine.sampler().state)
                self._reply(HTTPStatus.OK, {"reset": name})
            case "DELETE", "sessions", name:
                sessions.delete(name)
                self._reply(HTTPStatus.OK, {"deleted": name})
            case _:
                known = parts[0] in ("", "sessions")
                raise RefusedError(
                    HTTPStatus.METHOD_NOT_ALLOWED
                    if known
                    else HTTPStatus.NOT_FOUND,
                    f"{self.command} {self.path[:80]} is not one of "
                    + ", ".join(_ROUTES),
                )

    def _generate(self, name, asked):
        engine, sessions = self.server.engine, self.server.sessions
        tokenizer, limits = self.server.loaded.tokenizer, self.server.limits
        deadline = time.monotonic() + limits.max_seconds
        given = asked.check(limits)
        with sessions.hold(name):
            state = sessions.get(name)
            if state is None and not given:
                raise InputError("text is empty; a session begins with some")
            sampler = engine.sampler(state, asked.seed)
            tokens = tokenizer.encode(given)
            read, nats = engine.read(sampler, tokens, deadline)
            if read < len(tokens):
                raise RefusedError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"read only {read} of the text's {len(tokens)} tokens in "
                    f"{limits.max_seconds:g} s, and nothing has changed; give "
                    "less text at once",
                )
            self._send_head(HTTPStatus.OK, "application/x-ndjson")
            self.streaming = True
            # A character may span several tokens.
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            options = {"temperature": asked.temperature, "top_p": asked.top_p}
            drawn = 0
            for token in engine.draw(
                sampler, asked.tokens, deadline, **options
            ):
                drawn += 1
                text = decoder.decode(tokenizer.decode([token]))
                self._line({"token": token, "text": text})
            sessions.put(name, sampler.state)
        last = {
            "finish": "tokens" if drawn == asked.tokens else "time",
            "text": decoder.decode(b"", final=True),
            "read": read,
            "drawn": drawn,
        }
        if given:
            last["bits_per_byte"] = nats / math.log(2) / len(given)
        self._line(last)

    def _about(self):
        return {
            "model": self.server.loaded.model.config.name,
            "step": self.server.loaded.meta["step"],
            "limits": self.server.limits._asdict(),
            "requests": _ROUTES,
        }

    def _check_host(self):
        """Refuses pages whose own name was made to point to this machine.

        Pages of other origins can send neither JSON nor DELETE.
        """
        host = self.headers.get("Host", "localhost").rpartition(":")
        name = (host[0] or host[2]).strip("[]")
        own = str(self.server.server_address[0])
        if is_loopback(own) and not is_loopback(name):
            raise RefusedError(
                HTTPStatus.FORBIDDEN, f"Host={name[:80]!r} is not this machine"
            )

    def _body(self, *allowed):
        """Returns the JSON object that the request holds."""
        if self.headers.get_content_type() != "application/json":
            raise RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "Content-Type must be application/json",
            )
        if "Content-Length" not in self.headers:
            raise RefusedError(
                HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing"
            )
        size, most = self.unread, self.server.limits.max_bytes
        if size > most:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {size} bytes; allowed are {most}",
            )
        self.unread = 0
        try:
            content = self.rfile.read(size)
        except TimeoutError as error:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {self.timeout} s",
            ) from error
        try:
            found = json.loads(content or b"{}")
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise InputError("the body must be a JSON object")
        for field in found.keys() - set(allowed):
            raise InputError(
                f"{field[:80]!r} is not a field; allowed are "
                f"{', '.join(allowed) or 'none'}"
            )
        return found

    def send_error(self, code, message=None, explain=None):
        """Sends errors as JSON, those of the base class too."""
        del explain
        error = {"error": message or HTTPStatus(code).phrase}
        if self.streaming:
            self._line(error)
            return
        left = min(self.unread, _DISCARDED)
        while left > 0 and (piece := self.rfile.read(min(left, 65_536))):
            left -= len(piece)
        self._reply(code, error)

    def _reply(self, status, value):
        self._send_head(status, "application/json")
        if self.command != "HEAD":
            self._line(value)

    def _line(self, value):
        self.wfile.write(json.dumps(value).encode() + b"\n")

    def _send_head(self, status, kind):
        """Begins an answer, which ends when the connection is closed."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, and only this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value <= most):
        raise InputError(f"{name}={value!r:.80} must be from 0 to {most}")
