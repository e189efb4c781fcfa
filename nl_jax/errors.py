"""Errors that tell a user what to do."""


class InputError(ValueError):
    """Something that a user gave cannot work; the message says what to do.

    Scripts print the message on one line and exit non-zero.
    """


class DivergedError(InputError):
    """A loss or gradient was not finite; a lower rate or norm may help."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message
        """What was not finite at which step, without a remedy."""


class DamagedError(InputError):
    """A checkpoint cannot be read, or is not what was saved."""

    def __init__(self, message: str, reason: str, intact: int | None):
        super().__init__(message)
        self.reason = reason
        """What is wrong, without a place and a remedy."""
        self.intact = intact
        """Newest earlier step whose checkpoint can be read."""
