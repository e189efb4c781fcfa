"""Experiments, in folders by subject; each docstring is command and result.

``python -m experiments.NAME`` runs one. To add another: a file
``experiments/SUBJECT/NAME.py`` with a docstring, a table ``FLAGS`` and a
function ``main`` of the parsed flags; and an entry point
``experiments/NAME.py`` as the others have. ``experiments/shared`` has what all
of them use: kinds of flags, a sweep that goes on where it was stopped, records,
tables and plots.
"""
