"""A server, and what it does at each request."""

import codecs
import http.server
import socket
import threading
import time
from http import HTTPStatus

from experiments.serving.connection import check_open
from experiments.serving.engine import Engine
from experiments.serving.exchange import Exchange
from experiments.serving.requests import Generation, Limits, RefusedError
from experiments.serving.sessions import Sessions
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
        # IPv4 where a name has both, as its number is the smaller one.
        found = socket.getaddrinfo(address[0], None, type=socket.SOCK_STREAM)
        self.address_family = min(family for family, *_ in found)
        # An address that cannot be used closes the server at once.
        super().__init__(address, _Handler)

    def server_activate(self) -> None:
        """Compiles all programs before any client can connect."""
        self.engine.warm_up()
        super().server_activate()

    def server_close(self) -> None:
        """Frees the port, and refuses what is at work.

        Requests have a second to tell their clients.
        """
        super().server_close()
        self.engine.close()
        until = time.monotonic() + 1
        for _ in range(self.limits.max_requests):
            self.places.acquire(timeout=max(until - time.monotonic(), 0))


class _Handler(Exchange):
    """What each request does."""

    server: Server

    def route(self, parts):
        sessions = self.server.sessions
        match self.command, *parts:
            case "GET", "":
                self.reply(HTTPStatus.OK, self._about())
            case "GET", "sessions":
                self.reply(HTTPStatus.OK, {"sessions": sessions.names()})
            case "GET", "sessions", name, "state":
                content = sessions.existing(name).read_bytes()
                self.begin(HTTPStatus.OK, "application/octet-stream")
                self.wfile.write(content)
            case "POST", "sessions", name:
                self._generate(
                    name, Generation(**self.fields(*Generation._fields))
                )
            case "POST", "sessions", name, "fork":
                sessions.fork(name, self.fields("to").get("to"))
                self.reply(HTTPStatus.CREATED, {"forked": name})
            case "POST", "sessions", name, "reset":
                self.fields()
                sessions.reset(name, self.server.engine.sampler().state)
                self.reply(HTTPStatus.OK, {"reset": name})
            case "DELETE", "sessions", name:
                sessions.delete(name)
                self.reply(HTTPStatus.OK, {"deleted": name})
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
        given = asked.check(limits)
        with sessions.hold(name):
            state = sessions.get(name)
            if state is None and not given:
                raise InputError("text is empty; a session begins with some")
            sampler = engine.sampler(state, asked.seed)
            tokens = tokenizer.encode(given)
            read, bits = engine.read(sampler, tokens, self.deadline)
            if read < len(tokens):
                raise RefusedError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"read only {read} of the text's {len(tokens)} tokens in "
                    f"{limits.max_seconds:g} s, and nothing has changed; give "
                    "less text at once",
                )
            self.begin(HTTPStatus.OK, "application/x-ndjson")
            self.streaming = True
            # A character may span several tokens.
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            options = {"temperature": asked.temperature, "top_p": asked.top_p}
            drawn = 0
            for token in engine.draw(
                sampler, asked.tokens, self.deadline, **options
            ):
                drawn += 1
                text = decoder.decode(tokenizer.decode([token]))
                self.line({"token": token, "text": text})
            check_open(self.connection)
            sessions.put(name, sampler.state)
        last = {
            "finish": "tokens" if drawn == asked.tokens else "time",
            "text": decoder.decode(b"", final=True),
            "read": read,
            "drawn": drawn,
        }
        if given:
            last["bits_per_byte"] = bits
        self.line(last)

    def _about(self):
        return {
            "model": self.server.loaded.model.config.name,
            "step": self.server.loaded.meta["step"],
            "limits": self.server.limits._asdict(),
            "requests": _ROUTES,
        }
