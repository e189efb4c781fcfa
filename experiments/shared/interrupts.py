"""What scripts do at Ctrl-C and when they are asked to end."""

import os
import signal
import sys
import threading
from typing import NoReturn


class ExitAtSignal:
    """Context that ends the process with one line at SIGINT or SIGTERM.

    Its status is then 130 or 143, as shells report these signals. Python code
    is interrupted by ``KeyboardInterrupt``, and has some seconds to close its
    files; compilers and other code that does not return in this time are
    killed. Signals that a training loop handles are left to it.

    Args:
        seconds: time that Python code has to end by itself.
    """

    def __init__(self, seconds: float = 2.0):
        self._seconds = seconds
        self._leaving = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> "ExitAtSignal":
        self._before = {
            number: signal.signal(number, _interrupt)
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
        return self

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._leave(*error.args)
        self._over.set()
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        while number := os.read(self._reader, 1):
            ours = signal.getsignal(number[0]) is _interrupt
            if ours and not self._over.wait(self._seconds):
                self._leave(number[0])
        os.close(self._reader)

    def _leave(self, number: int = signal.SIGINT) -> NoReturn:
        """Ends the process; at shutdown, JAX may crash after an interrupt."""
        self._leaving.acquire()  # Once.
        try:
            sys.stdout.flush()
            name = signal.Signals(number).name
            print(f"\nstopped by {name}", file=sys.stderr, flush=True)
        finally:
            os._exit(128 + number)


def _interrupt(number, frame) -> NoReturn:
    raise KeyboardInterrupt(number)
