"""The flag ``--config``, and those of its fields that are paths."""

import ast

from absl import flags
from ml_collections import config_flags

from experiments.shared.flags import Flag

_PATHS = ("paths", "held_out_paths")


def config_file(default: str) -> Flag:
    """A configuration file; ``--config.field=value`` edits its fields."""

    def define(name, values):
        for field in _PATHS:
            flags.DEFINE_flag(_PathsFlag(name, field, values), values)
        config_flags.DEFINE_config_file(
            name,
            default,
            "Configuration file; --config.field=value edits it.",
            flag_values=values,
        )

    return define


class _PathsParser(flags.ArgumentParser):
    """Parses paths, which ml_collections would take for Python."""

    syntactic_help = "paths separated by commas"

    def parse(self, argument):
        try:
            found = ast.literal_eval(argument)
        except (ValueError, SyntaxError):
            found = argument
        found = found if isinstance(found, (tuple, list)) else (found,)
        # DataConfig splits a text that is not a path itself.
        texts = found and all(isinstance(path, str) for path in found)
        return tuple(found) if texts else (argument,)


class _PathsFlag(flags.Flag):
    """Sets a field of ``data`` to the paths of all its occurrences."""

    def __init__(self, config, field, values):
        self._config, self._field, self._values = config, field, values
        super().__init__(
            _PathsParser(),
            flags.ArgumentSerializer(),
            f"{config}.data.{field}",
            None,
            "Files or folders, separated by commas; may be repeated.",
        )

    def parse(self, argument):
        before = self.value or ()
        super().parse(argument)
        self.value = (*before, *self.value)
        # Flags of fields come after --config, or it is refused.
        setattr(self._values[self._config].value.data, self._field, self.value)
