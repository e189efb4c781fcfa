"""Experiments in folders by subject.

``python -m experiments.NAME`` runs one; its docstring has the command and the
measured result. To add an experiment, write ``experiments/SUBJECT/NAME.py``
with a docstring, a table ``FLAGS`` and a function ``main`` of the parsed flags,
and an entry point ``experiments/NAME.py`` like the others. All experiments
share ``experiments/shared``: kinds of flags, a sweep that continues where it
was stopped, records, tables and plots.
"""

import sys


def _brief(kind, error, trace, usual=sys.excepthook):
    """Shows one line for Ctrl-C while a script is still being imported."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped by SIGINT", file=sys.stderr)
    else:
        usual(kind, error, trace)


sys.excepthook = _brief
