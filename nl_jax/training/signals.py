"""Stops a run between two steps when the system asks for it."""

import signal
import threading


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a wish to stop after the step."""

    asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *unused) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        del frame
        self.asked = True
        # A second signal does what it always did.
        signal.signal(number, self._before[number])
