"""Experiments in folders by subject.

``python -m experiments.NAME`` runs one; its docstring has the command and the
measured result. To add an experiment, write ``experiments/SUBJECT/NAME.py``
with a docstring, a table ``FLAGS`` and a function ``main`` of the parsed flags,
and an entry point ``experiments/NAME.py`` like the others. All experiments
share ``experiments/shared``: kinds of flags, a sweep that stores its cells and
continues where it was stopped, tables and plots. A ``REPORT`` of the script
says how ``python -m experiments.report`` shows its cells.
"""

import os
import signal
import sys
from typing import NoReturn


def stop(number: int, frame: object = None) -> NoReturn:
    """Ends the process at a signal, with one line and the status of shells."""
    try:
        sys.stdout.flush()
        name = signal.Signals(number).name
        os.write(2, f"\nstopped by {name}\n".encode())
    finally:
        os._exit(128 + number)


# Python is finding the script that it was asked to run. Nothing is open yet
# while its imports are under way, and an exception could be swallowed there.
if sys.argv[:1] == ["-m"]:
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
