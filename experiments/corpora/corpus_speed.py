"""Speed and memory of preparing and opening a large corpus.

``python -m experiments.corpus_speed --megabytes=2000`` generates documents of
log-normal lengths, as JSONL, prepares them, and opens the result in a new
process. It prints the largest sum of the memory that all processes of the
preparation had at a time, and the speed, also per second of a core, and removes
what it has generated.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from experiments.shared import flags, table
from experiments.shared.records import write
from nl_jax.errors import InputError

FLAGS = {
    "megabytes": flags.integer(200, "Size of the corpus."),
    "tokenizer": flags.choice("byte", ("byte", "bpe"), "Of the corpus."),
    "processes": flags.integer(2, "That tokenize."),
    "reads": flags.integer(20_000, "Documents to read at random."),
    "out": flags.folder("results", "Folder for results."),
}
_OPEN = """
import sys, time
import numpy as np
from nl_jax.data import open_prepared
from nl_jax.training import peak_memory_bytes
imported, before = time.perf_counter(), peak_memory_bytes()
train = open_prepared(sys.argv[1]).train
order = np.random.default_rng(0).permutation(len(train)).tolist()
train[order[0]]
first, began = time.perf_counter(), time.process_time()
tokens = sum(len(train[i].tokens) for i in order[: int(sys.argv[2])])
seconds = time.process_time() - began
print(first - imported, tokens / seconds, before, peak_memory_bytes())
"""


def main(values: flags.FlagValues) -> None:
    """Generates, prepares, opens and measures."""
    with tempfile.TemporaryDirectory(prefix="corpus_speed-") as name:
        folder = pathlib.Path(name)
        size = values.megabytes * 1_000_000
        if shutil.disk_usage(folder).free < 3.5 * size:
            raise InputError(
                f"--megabytes={values.megabytes} needs 3.5 times as much free "
                f"in {folder.parent}"
            )
        count = generate(folder / "text", size)
        memory, cores, seconds = _prepare(values, folder)
        manifest = json.loads((folder / "corpus/manifest.json").read_text())
        tokens = manifest["parts"]["train"]["tokens"]
        opened = subprocess.run(
            [sys.executable, "-c", _OPEN, folder / "corpus", str(values.reads)],
            capture_output=True,
            text=True,
            check=True,
        )
        first, speed, before, after = map(float, opened.stdout.split())
    rows = [
        ["documents", f"{count:,}"],
        ["text", f"{size / 1e6:,.0f} MB"],
        ["training tokens", f"{tokens:,}"],
        ["preparation", f"{seconds:.0f} s"],
        ["preparation, speed", f"{size / 1e6 / seconds:.1f} MB/s"],
        ["preparation, per core", f"{size / 1e6 / cores:.1f} MB/s"],
        ["preparation, memory of all processes", f"{memory / 1e6:,.0f} MB"],
        ["opening to first document", f"{first:.2f} s"],
        ["reading at random, per core", f"{speed / 1e6:.1f} M tokens/s"],
        ["reading, memory beside imports", f"{(after - before) / 1e6:.0f} MB"],
    ]
    record = {
        **flags.pick(values, ("megabytes", "tokenizer", "processes", "reads")),
        "documents": count,
        "tokens": tokens,
        "prepare_seconds": seconds,
        "prepare_core_seconds": cores,
        "prepare_memory_bytes": memory,
        "open_seconds": first,
        "tokens_per_second": speed,
        "open_memory_bytes": after - before,
    }
    lines = table.markdown(["", values.tokenizer], rows)
    write(values.out, "corpus_speed", lines, record)


def generate(folder: pathlib.Path, size: int) -> int:
    """Writes JSONL files of generated text; returns the number of documents.

    Words are drawn from a Zipf distribution over 50,000, and the number of
    words of a document from a log-normal one with a median of about 250.
    """
    folder.mkdir()
    rng = np.random.default_rng(0)
    letters = np.array([*"etaoinshrdlcumwfgypbvk"])
    words = np.array(
        [
            "".join(rng.choice(letters, n))
            for n in rng.integers(2, 10, 50_000).tolist()
        ]
    )
    ranks = np.minimum(rng.zipf(1.2, 1 << 22) - 1, len(words) - 1)
    text = " ".join(words[ranks])
    count = written = number = 0
    while written < size:
        with (folder / f"{number:05}.jsonl").open("w") as file:
            end = min(size, written + (1 << 28))
            while written < end:
                for length in rng.lognormal(7.25, 1.0, 256).astype(int):
                    start = int(rng.integers(len(text) - length))
                    line = f"{count} {text[start : start + length]}"
                    written += file.write(json.dumps({"text": line}) + "\n")
                    count += 1
        number += 1
    return count


def _prepare(values, folder) -> tuple[int, float, float]:
    """Returns the most memory in bytes, seconds of cores, and seconds."""
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "experiments.prepare_text",
        f"--input={folder / 'text'}",
        f"--output={folder / 'corpus'}",
        f"--tokenizer={values.tokenizer}",
        f"--processes={values.processes}",
    ]
    most, cores = 0, {}
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            total = 0
            for pid, memory, seconds in _processes(process.pid):
                total += memory
                cores[pid] = seconds
            most = max(most, total)
            time.sleep(0.2)
        if process.returncode:
            raise InputError("the preparation failed")
    return most, sum(cores.values()), time.perf_counter() - began


def _processes(pid: int) -> Iterator[tuple[int, int, float]]:
    """Yields a process and its descendants, with their use of the machine.

    Memory that processes share is counted once; seconds are those of cores.
    """
    waiting = [pid]
    tick = os.sysconf("SC_CLK_TCK")
    while waiting:
        place = pathlib.Path(f"/proc/{waiting.pop()}")
        try:
            memory = 0
            for line in (place / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    memory = int(line.split()[1]) * 1024
            times = (place / "stat").read_text().rpartition(")")[2].split()
            for children in place.glob("task/*/children"):
                waiting += map(int, children.read_text().split())
        except OSError:  # It has ended.
            continue
        yield int(place.name), memory, sum(map(int, times[11:13])) / tick
