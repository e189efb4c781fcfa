"""What requests may ask and cost, and the error that refuses them."""

import json
from http import HTTPStatus
from typing import Any, NamedTuple

from nl_jax.checks import check_count
from nl_jax.errors import InputError


class RefusedError(Exception):
    """A request that cannot be answered, and the HTTP status that says why."""

    def __init__(self, status: HTTPStatus, message: Any):
        super().__init__(str(message))
        self.status = status


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


def json_fields(content: bytes, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Returns the fields of a JSON object, after checking their names."""
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


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value <= most):
        raise InputError(f"{name}={value!r:.80} must be from 0 to {most}")
