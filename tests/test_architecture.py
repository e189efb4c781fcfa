"""The structure of the packages: imports run one way, names mean one thing."""

import ast
import collections
import pathlib

import pytest

from experiments.language import train_lm
from experiments.shared import cli
from nl_jax.memory import associative

ROOT = pathlib.Path(__file__).parent.parent
ORDER = (
    "pallas_kernels",
    "nl_jax.base",
    "nl_jax.nested",
    "nl_jax.memory",
    "nl_jax.optimizers",
    "nl_jax.layers",
    "nl_jax.models",
    "nl_jax.data",
    "nl_jax.pretrained",
    "nl_jax.training",
    "nl_jax.continual",
    "experiments",
)
"""Each package imports only itself and those before it; ``nl_jax.base`` are the
modules that lie in ``nl_jax`` itself."""


def _files(*packages):
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def _package(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "nl_jax":
        return parts[0] if parts[0] in ORDER else None
    name = ".".join(parts[:2])
    return name if name in ORDER else "nl_jax.base"


def _module(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def _imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("nl_jax", "experiments", "pallas_kernels"):
                for alias in node.names:
                    yield f"{node.module}.{alias.name}"
            else:
                yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_packages_import_only_those_before_them():
    wrong = []
    for path in _files("pallas_kernels", "nl_jax", "experiments"):
        own = _package(_module(path))
        for name in _imports(path):
            other = _package(name)
            if other and ORDER.index(other) > ORDER.index(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("package", ["nl_jax", "pallas_kernels"])
def test_no_file_of_a_package_is_longer_than_allowed(package):
    longest = {
        str(path.relative_to(ROOT)): count
        for path in _files(package)
        if (count := len(path.read_text().splitlines())) > 350
    }
    assert not longest


def test_no_public_name_stands_for_two_things():
    places = collections.defaultdict(set)
    for path in _files("nl_jax"):
        for node in ast.parse(path.read_text()).body:
            kinds = (ast.ClassDef, ast.FunctionDef)
            if isinstance(node, kinds) and not node.name.startswith("_"):
                places[node.name].add(_module(path))
    twice = {name: sorted(where) for name, where in places.items()}
    twice = {name: where for name, where in twice.items() if len(where) > 1}
    assert not twice


def test_no_class_of_the_experiments_has_the_name_of_another():
    places = collections.defaultdict(set)
    for path in _files("nl_jax", "experiments"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(_module(path))
    assert not {n: sorted(w) for n, w in places.items() if len(w) > 1}


def test_no_file_name_is_given_twice_in_the_library():
    places = collections.defaultdict(list)
    for path in _files("nl_jax"):
        if path.name != "__init__.py":
            places[path.name].append(_module(path))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice


def test_names_of_a_package_are_listed_once():
    inner = [
        str(path.relative_to(ROOT))
        for path in _files("nl_jax", "pallas_kernels", "experiments")
        if path.name != "__init__.py" and "\n__all__" in path.read_text()
    ]
    # Its functions are called as metrics.forgetting(...).
    assert inner == ["nl_jax/continual/metrics.py"]


class _ReachedError(Exception):
    """The kernel was called."""


def test_tokens_go_down_to_the_kernel_through_few_files(monkeypatch, tmp_path):
    """From the script to the kernel, and never back up to a package."""

    def arrive(*arguments, **options):
        raise _ReachedError

    monkeypatch.setattr(associative, "memory_scan", arrive)
    monkeypatch.setattr("sys.argv", ["train_lm"])
    small = {"d_model": 8, "n_heads": 2, "n_layers": 1}
    flags = [f"--config.model.{name}={size}" for name, size in small.items()]
    with pytest.raises(_ReachedError) as reached:
        cli.run(train_lm, [*flags, f"--workdir={tmp_path}"])
    own = (ROOT / "experiments" / "language", ROOT / "nl_jax")
    entered = [
        _module(pathlib.Path(entry.path))
        for entry in reached.traceback
        if any(pathlib.Path(entry.path).is_relative_to(root) for root in own)
    ]
    # The ninth file is the kernel's own.
    assert len(set(entered)) <= 8, entered
    packages = [ORDER.index(_package(name)) for name in entered]
    assert packages == sorted(packages, reverse=True), entered
