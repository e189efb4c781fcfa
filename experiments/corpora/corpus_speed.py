"""Speed and memory of preparing and opening a large corpus.

``python -m experiments.corpus_speed --megabytes=2000`` generates documents of
log-normal lengths, as JSONL, prepares them, and reads batches of the result in
new processes, one for each way of reading. It prints the largest sum of the
memory that all processes of the preparation had at a time, and speeds, also per
second of a core, and removes what it has generated.
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
    "batches": flags.integer(500, "Batches of 32 x 1,024 to read."),
    "out": flags.folder("results", "Folder for results."),
}
READINGS = ("windows", "packed", "contiguous")
_OPEN = """
import json, sys, time
import numpy as np
from nl_jax.data import make_iterator, open_prepared
def peak():  # A parent's counts in what getrusage returns.
    status = open("/proc/self/status").read()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])
folder, reading, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
imported, memory = time.perf_counter(), peak()
batches = make_iterator(
    [open_prepared(folder).train],
    seq_len=1024, batch_size=32, seed=0, reading=reading,
)
batch = next(batches)
first, began = time.perf_counter() - imported, time.process_time()
padding = tokens = 0
for _ in range(count):
    batch = next(batches)
    tokens += batch.tokens.size
    if batch.segment_ids is not None:
        padding += int((batch.segment_ids == 0).sum())
print(json.dumps({
    "first_seconds": first,
    "tokens_per_core_second": tokens / (time.process_time() - began),
    "padding": padding / tokens,
    "memory_bytes": peak(),
    "import_memory_bytes": memory,
}))
batches.close()
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
        opened = {
            reading: _open(folder / "corpus", reading, values.batches)
            for reading in READINGS
        }
    rows = [
        ["documents", f"{count:,}"],
        ["text", f"{size / 1e6:,.0f} MB"],
        ["training tokens", f"{tokens:,}"],
        ["preparation", f"{seconds:.0f} s"],
        ["preparation, speed", f"{size / 1e6 / seconds:.1f} MB/s"],
        ["preparation, per core", f"{size / 1e6 / cores:.1f} MB/s"],
        ["preparation, memory of all processes", f"{memory / 1e6:,.0f} MB"],
    ]
    for reading, found in opened.items():
        rate = found["tokens_per_core_second"] / 1e6
        rows += [
            [f"{reading}, first batch", f"{found['first_seconds']:.2f} s"],
            [f"{reading}, per core", f"{rate:.1f} M tokens/s"],
            [f"{reading}, padding", f"{found['padding']:.2%}"],
            [f"{reading}, memory", f"{found['memory_bytes'] / 1e6:,.0f} MB"],
        ]
    record = {
        **flags.pick(values, ("megabytes", "tokenizer", "processes")),
        "documents": count,
        "tokens": tokens,
        "prepare_seconds": seconds,
        "prepare_core_seconds": cores,
        "prepare_memory_bytes": memory,
        **opened,
    }
    lines = table.markdown(["", values.tokenizer], rows)
    write(values.out, "corpus_speed", lines, record)


def _open(folder: pathlib.Path, reading: str, batches: int) -> dict:
    """Reads batches in a new process."""
    found = subprocess.run(
        [sys.executable, "-c", _OPEN, str(folder), reading, str(batches)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


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
