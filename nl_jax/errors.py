"""Errors that tell a user what to do."""


class InputError(ValueError):
    """Something that a user gave cannot work; the message says what to do.

    Scripts print the message on one line and exit non-zero.
    """


class DivergedError(InputError):
    """A loss or gradient was not finite; a lower rate or norm may help."""
