"""What a compiled program does on one device, read from XLA's text of it.

XLA's own analysis counts the body of a loop once. Here a loop of ``n`` trips
counts ``n`` times; ``n`` is the constant that its condition compares with.
"""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

_SIZES = {"pred": 1, "bf16": 2, "f16": 2}
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]\d+)\w*\[([\d,]*)\](\{[^}]*\})?")
_LINE = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "iota",
    "after-all",
    "partition-id",
}


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    shape: str
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.-]+)", self.rest.split(")", 1)[0])

    def calls(self, *keys: str) -> list[str]:
        """Names of computations that an attribute names."""
        found = re.findall(
            rf"(?:{'|'.join(keys)})=(%[\w.-]+|{{[^}}]*}})", self.rest
        )
        return [
            name for part in found for name in re.findall(r"%([\w.-]+)", part)
        ]


Computations = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Computations, str]:
    """Returns the instructions of each computation, and the entry's name."""
    out: Computations = {}
    entry, now = "", ""
    for line in text.splitlines():
        if line.endswith("{") and line[:1] in "%E":
            now = re.search(r"%?([\w.-]+) \(", line.removeprefix("ENTRY "))[1]
            entry = now if line.startswith("ENTRY") else entry
            out[now] = []
        elif now and (match := _LINE.match(line)):
            out[now].append(Instruction(*match.groups()))
    return out, entry


def runs(computations: Computations, entry: str) -> dict[str, int]:
    """Returns how often each computation runs."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name, count):
        times[name] += count
        for line in computations[name]:
            if line.op == "while":
                (condition,) = line.calls("condition")
                (body,) = line.calls("body")
                visit(body, count * _trips(computations[condition]))
                continue
            keys = "calls", "to_apply", "branch_computations"
            for inner in line.calls(*keys):
                visit(inner, count)

    visit(entry, 1)
    return times


def _trips(condition: list[Instruction]) -> int:
    bounds = [
        int(match[1])
        for line in condition
        if line.op == "constant" and line.shape.startswith("s32[]")
        if (match := re.match(r"(\d+)\)", line.rest))
    ]
    return bounds[0] if len(bounds) == 1 else 1


def collectives(
    computations: Computations, times: dict[str, int]
) -> dict[str, tuple[int, int]]:
    """Returns how often each kind of collective runs, and for what bytes.

    The bytes are those of one device's larger array: what it gathers, or what
    it reduces. A collective that runs beside others is listed in the steps that
    it is cut into; its channel shows that they are one. Some of them may be in
    a loop that runs meanwhile: it runs as often as the rarest of its steps.
    """
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for name, lines in computations.items():
        shapes = {line.name: line.shape for line in lines}
        for line in lines:
            kind = line.op.removesuffix("-start")
            if kind not in _COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", line.rest)
            key = kind, channel[1] if channel else line.name
            whole = [line.shape, *(shapes.get(o, "") for o in line.operands)]
            size = max(sum(_sizes(shape)) for shape in whole[1:] + whole[:1])
            if line.op.endswith("-start"):  # Its result repeats its operand.
                size = max(_sizes(line.shape))
            if count := times.get(name, 0):
                rarest, largest = seen.get(key, (count, size))
                seen[key] = min(rarest, count), max(largest, size)
    out: dict[str, tuple[int, int]] = {}
    for (kind, _), (count, size) in seen.items():
        before = out.get(kind, (0, 0))
        out[kind] = before[0] + count, before[1] + count * size
    return out


def traffic(computations: Computations, times: dict[str, int]) -> int:
    """Returns the bytes that pass between a device and its memory.

    Instructions read their operands and write their results, except what is in
    the vector memory of the chip. Of an array of which a fusion reads or
    replaces a slice, only that counts.
    """
    fused = {
        inner
        for lines in computations.values()
        for line in lines
        if line.op == "fusion"
        for inner in line.calls("calls")
    }
    total = 0
    for name, lines in computations.items():
        if name in fused or not times.get(name):
            continue
        shapes = {line.name: line.shape for line in lines}
        moved = sum(_moved(line, shapes, computations) for line in lines)
        total += times[name] * moved
    return total


def _moved(line, shapes, computations) -> int:
    if line.op in _NO_TRAFFIC:
        return 0
    if line.op.endswith("-done"):
        return _in_memory(line.shape)
    if line.op.endswith("-start"):
        return [*_sizes(line.shape), 0, 0][1]  # Its target, or source.
    if line.op in ("dynamic-slice", "slice", "gather"):
        return 2 * _in_memory(line.shape)
    if line.op == "dynamic-update-slice":
        return 2 * _in_memory(shapes.get(line.operands[1], ""))
    given = [_in_memory(shapes.get(name, "")) for name in line.operands]
    result = _in_memory(line.shape)
    if line.op == "fusion":
        (inside,) = line.calls("calls")
        given = [
            min(size, _read(name, inside, computations))
            for size, name in zip(
                given, _parameters(computations[inside]), strict=True
            )
        ]
        written = _written(inside, computations)
        result = result if written is None else min(result, written)
    return sum(given) + result


_ALL = 1 << 62


def _parameters(lines) -> list[str]:
    """Returns the names of a computation's parameters, in their order."""
    found = [line for line in lines if line.op == "parameter"]
    found.sort(key=lambda line: int(line.rest.split(")")[0]))
    return [line.name for line in found]


def _read(name, inside, computations) -> int:
    """Returns the bytes that a computation reads of an array, if only slices.

    Those may be taken in a fusion within.
    """
    size = 0
    for user in computations[inside]:
        if name not in user.operands:
            continue
        if user.op in ("dynamic-slice", "slice"):
            size += sum(_sizes(user.shape))
        elif user.op == "dynamic-update-slice":
            size += 0 if user.operands[0] == name else _ALL
        elif user.op == "bitcast":
            size += _read(user.name, inside, computations)
        elif user.op == "fusion":
            (inner,) = user.calls("calls")
            given = zip(
                user.operands, _parameters(computations[inner]), strict=True
            )
            size += sum(
                _read(own, inner, computations)
                for operand, own in given
                if operand == name
            )
        else:
            size += _ALL
    return size


def _written(inside, computations) -> int | None:
    """Returns the bytes of a slice that is replaced in place, if one is."""
    lines, written = computations[inside], None
    shapes = {line.name: line.shape for line in lines}
    for line in lines:
        if line.op == "dynamic-update-slice":
            written = sum(_sizes(shapes.get(line.operands[1], "")))
        elif line.op == "fusion":
            (inner,) = line.calls("calls")
            found = _written(inner, computations)
            written = written if found is None else found
    return written


def _sizes(shape: str, spaces: bool = False) -> Iterator[int]:
    """Bytes of every array in the text of a shape."""
    for kind, dims, layout in _ARRAY.findall(shape):
        if spaces and "S(" in layout:
            continue
        count = 1
        for size in dims.split(","):
            count *= int(size or 1)
        bits = re.search(r"\d+$", kind)
        width = _SIZES.get(kind) or int(bits[0] if bits else 8) / 8
        yield int(count * width)


def _in_memory(shape: str) -> int:
    return sum(_sizes(shape, spaces=True))
