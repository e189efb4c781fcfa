"""Times the memory layer of ``titans-pytorch`` in its own environment.

Reads one line of JSON with the settings, then a number of calls per line, and
answers each with the seconds per call, so that rounds can alternate with
nl_jax. Needs torch and titans-pytorch, but not nl_jax.
"""

import json
import sys
import time

import torch
from titans_pytorch import MemoryMLP, NeuralMemory


def main():
    """Answers requests until standard input ends."""
    settings = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    width, chunk = settings["width"], settings["chunk"]
    layer = NeuralMemory(
        dim=width,
        chunk_size=chunk,
        batch_size=chunk,
        model=MemoryMLP(width, depth=2, expansion_factor=1.0),
    )
    x = torch.randn(settings["batch"], settings["length"], width)

    def step():
        layer.zero_grad()
        out, _ = layer(x)
        out.square().mean().backward()

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            step()
        print((time.perf_counter() - begun) / int(line), flush=True)


main()
