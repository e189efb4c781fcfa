"""The one error that tells a user what to do."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Something that a user gave cannot work; the message says what to do.

    Scripts print the message on one line and exit non-zero.
    """
