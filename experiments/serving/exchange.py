"""One request and its answer: time, size, place, errors."""

import contextlib
import http.server
import io
import json
import time
from http import HTTPStatus
from typing import Any

from experiments.serving.connection import (
    TimedReader,
    check_open,
    host_name,
    is_loopback,
)
from experiments.serving.requests import RefusedError, json_fields
from nl_jax.errors import InputError

_DISCARDED = 2**24
"""Bytes of a refused body that are read all the same.

A client that is still sending when the connection closes may miss the answer.
"""


class Exchange(http.server.BaseHTTPRequestHandler):
    """Receives one request, answers it and closes the connection.

    Subclasses have ``route``, which is called with the parts of the path.
    """

    protocol_version = "HTTP/1.1"
    timeout = 10  # Seconds that a client may neither send nor take anything.
    server: Any
    unread = 0
    streaming = False

    def setup(self):
        """Sets the time for the whole request."""
        super().setup()
        self.deadline = time.monotonic() + self.server.limits.max_seconds
        reader = TimedReader(self.connection, self.deadline)
        self.rfile = io.BufferedReader(reader)

    def handle(self):
        """Ends without a word where the client has left."""
        with contextlib.suppress(OSError):
            super().handle()

    def answer(self):
        """Answers the request, or says why not."""
        # What is left of a refused body must not be read as a request.
        self.close_connection = True
        # A place is free only when the error has been sent.
        with contextlib.ExitStack() as place:
            try:
                self._answer(place)
            except RefusedError as error:
                self.send_error(error.status, str(error))
            except InputError as error:
                self.send_error(HTTPStatus.BAD_REQUEST, str(error))
            except (ConnectionError, TimeoutError):
                raise
            except OSError as error:
                self.send_error(
                    HTTPStatus.INTERNAL_SERVER_ERROR,
                    f"the server's files fail ({error.strerror or error})",
                )

    do_GET = do_POST = do_DELETE = answer  # noqa: N815

    def _answer(self, place):
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal() and len(length) < 16):
            raise InputError(f"Content-Length={length[:80]!r} is no number")
        self.unread = int(length)
        self._check_host()
        # Slow clients have no place before their request is there.
        self.content = self._receive()
        check_open(self.connection)  # What ends early may lack something.
        places = self.server.places
        if not places.acquire(blocking=False):
            raise RefusedError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.server.limits.max_requests} requests are at work, "
                "which is the limit; try again later",
            )
        place.callback(places.release)
        self.route(self.path.partition("?")[0].strip("/").split("/"))

    def _check_host(self):
        """Refuses pages whose own name was made to point to this machine.

        Pages of other origins can send neither JSON nor DELETE.
        """
        header = self.headers.get("Host", "localhost")
        own = str(self.server.server_address[0])
        if is_loopback(own) and not is_loopback(host_name(header)):
            raise RefusedError(
                HTTPStatus.FORBIDDEN,
                f"Host={header[:80]!r} is not this machine",
            )

    def _receive(self):
        """Returns the body, all of which must come in time."""
        size, limits = self.unread, self.server.limits
        if size > limits.max_bytes:
            raise RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {size} bytes; allowed are {limits.max_bytes}",
            )
        self.unread = 0
        try:
            return self.rfile.read(size)
        except TimeoutError as error:
            raise RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {limits.max_seconds:g} s, or "
                f"not a byte of it for {self.timeout} s",
            ) from error

    def fields(self, *allowed):
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
        return json_fields(self.content, allowed)

    def send_error(self, code, message=None, explain=None):
        """Sends errors as JSON, those of the base class too."""
        del explain
        error = {"error": message or HTTPStatus(code).phrase}
        if self.streaming:
            self.line(error)
            return
        left = min(self.unread, _DISCARDED)
        with contextlib.suppress(TimeoutError):
            while left > 0 and (piece := self.rfile.read(min(left, 65_536))):
                left -= len(piece)
        self.reply(code, error)

    def reply(self, status, value):
        """Answers with one line of JSON."""
        self.begin(status, "application/json")
        if self.command != "HEAD":
            self.line(value)

    def line(self, value):
        """Sends a line of JSON."""
        self.wfile.write(json.dumps(value).encode() + b"\n")

    def begin(self, status, kind):
        """Begins an answer, which ends when the connection is closed."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()
