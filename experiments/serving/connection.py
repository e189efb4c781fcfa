"""What a server must know of a connection: its time, its end, its host."""

import io
import ipaddress
import socket
import time
import urllib.parse


class TimedReader(io.RawIOBase):
    """Bytes that a client sends, each soon after the last, all until a time.

    Args:
        connection: with the timeout of a single wait, in seconds.
        deadline: monotonic time; a read that would wait longer raises
            ``TimeoutError``.
    """

    def __init__(self, connection: socket.socket, deadline: float):
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        """Returns ``True``."""
        return True

    def readinto(self, buffer) -> int:
        """Reads what has come, at least one byte before the end."""
        pause = self._connection.gettimeout()
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(min(left, pause))
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(pause)


def check_open(connection: socket.socket) -> None:
    """Raises ``ConnectionError`` if it is known that the client has left."""
    pause = connection.gettimeout()
    connection.setblocking(False)
    try:
        if not connection.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError
    except BlockingIOError:
        pass  # It waits for the answer.
    finally:
        connection.settimeout(pause)


def host_name(header: str) -> str:
    """Returns the name in a ``Host`` header, without port and brackets."""
    try:
        return urllib.parse.urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine, and only this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
