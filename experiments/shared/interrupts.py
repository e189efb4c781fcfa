"""What scripts do at Ctrl-C and when they are asked to end."""

import os
import signal
import sys
import threading
from typing import NoReturn

from experiments import stop


class ExitAtSignal:
    """Context that ends the process with one line at SIGINT or SIGTERM.

    Its status is then 130 or 143, as shells report these signals. Python code
    is interrupted by ``KeyboardInterrupt``, and has some seconds to close its
    files; compilers and other code that does not return in this time are
    killed. So is all code at a second signal, and where the exception would be
    ignored, as in callbacks of the garbage collector. Signals that a training
    loop handles are left to it.

    Args:
        seconds: time that Python code has to end by itself.
    """

    def __init__(self, seconds: float = 2.0):
        self._seconds = seconds
        self._leaving = threading.RLock()
        self._over = threading.Event()
        self._asked: int | None = None

    def __enter__(self) -> "ExitAtSignal":
        self._before = {
            number: signal.signal(number, self._interrupt)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        # The number of a signal is written as it arrives, even while the main
        # thread compiles and calls no handler.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(
            self._writer, warn_on_full_buffer=False
        )
        threading.Thread(target=self._watch, daemon=True).start()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._ignored
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._leave(*error.args)
        if error is not None and self._asked:
            self._leave(self._asked)
        self._over.set()
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            ours = signal.getsignal(number[0]) == self._interrupt
            if ours and not self._over.wait(self._seconds):
                self._leave(number[0])
        os.close(self._reader)

    def _interrupt(self, number, frame) -> NoReturn:
        if self._asked:
            self._leave(number)
        self._asked = number
        raise KeyboardInterrupt(number)

    def _ignored(self, what) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            self._leave(*what.exc_value.args)
        self._hook(what)

    def _leave(self, number: int = signal.SIGINT) -> NoReturn:
        """Ends the process; at shutdown, JAX may crash after an interrupt."""
        with self._leaving:  # Once.
            stop(number)
