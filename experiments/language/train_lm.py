"""Trains a language model on text, and continues where it stopped.

``python -m experiments.train_lm`` trains Hope on English text that ships with
every CPython; README.md says how long it takes and what it prints. Every field
of ``nl_jax.training.TrainConfig`` is a flag::

    python -m experiments.train_lm --workdir=/tmp/mine \
        --config.model.name=transformer --config.data.paths=a.txt

``--init_from=PATH`` begins with the weights, the sizes and the tokenizer of
another run's workdir or of a pretrained model.

The folder ``--workdir`` then holds ``config.json``, ``metrics.jsonl``,
``loss.png``, ``results.json``, ``sample.txt`` and ``checkpoints/``. The same
command continues from the last checkpoint, with the same numbers as if the run
had never stopped. It may be remote, such as ``gs://bucket/run``. Compiled
programs are kept beside it, in ``compilation_cache/``, unless
``JAX_COMPILATION_CACHE_DIR`` names another folder.

On several machines the same command runs in each, with ``--distributed`` where
JAX finds the others (TPUs, SLURM, Kubernetes), and elsewhere with
``--coordinator_address=HOST:PORT --num_processes=N --process_id=0`` to ``N-1``.
"""

import pathlib
import time

import jax
from etils import epath

from experiments.language.config_flag import config_file
from experiments.language.steps import LIST_STEPS, print_steps
from experiments.shared import flags, processes
from experiments.shared.records import provenance
from nl_jax import training
from nl_jax.continual import Sampler
from nl_jax.errors import InputError
from nl_jax.models import to_json
from nl_jax.nested.level_table import count_parameters

_DEFAULT = pathlib.Path(__file__).parents[1] / "configs" / "default.py"
_TRACKERS = ("tensorboard", "wandb", "trackio")
FLAGS = {
    "config": config_file(str(_DEFAULT)),
    "workdir": flags.string(
        "runs/default", "Folder of the run; holds all that it writes."
    ),
    "init_from": flags.string(
        None, "Short for --config.init_from: weights to begin with."
    ),
    "writers": flags.words(
        [], "Where metrics go besides metrics.jsonl.", _TRACKERS
    ),
    "skip_damaged": flags.switch(
        "Go on from the newest intact checkpoint if later ones are damaged."
    ),
    "profile": flags.string(
        None, "START:STEPS; writes an XProf trace of them to workdir/profile."
    ),
    "list_steps": LIST_STEPS,
    **processes.PROCESS_FLAGS,
}


def main(values: flags.FlagValues) -> None:
    """Trains, samples, and writes results."""
    if not values.workdir:
        raise InputError("--workdir is empty; give a folder")
    if values.list_steps:
        print_steps(values.workdir)
        return
    given = getattr(values.config, "keys", tuple)()
    if set(given) != set(training.flag_config()):
        raise InputError(
            "get_config of --config must return what "
            "nl_jax.training.flag_config returns"
        )
    processes.run_together("experiments.train_lm", values, lambda: _run(values))


def _run(values: flags.FlagValues) -> None:
    began = time.monotonic()
    if values.init_from:
        values.config.init_from = values.init_from
    profile = _profile(values.profile)
    workdir = training.open_folder(values.workdir)
    config, initial = training.begin_run(values.config, workdir)
    training.cache_programs(workdir.parent / "compilation_cache")
    result = training.train(
        config,
        workdir,
        initial=initial,
        writers=[_writer(name, workdir) for name in values.writers],
        skip_damaged=values.skip_damaged,
        profile=profile,
    )
    if jax.process_index() != 0:
        return
    ours, gzip = result.held_out_bits_per_byte, result.gzip_bits_per_byte
    if ours is not None:
        print(
            f"held out: {ours:.3f} bits per byte in windows of "
            f"{config.seq_len} tokens; gzip on the same bytes: {gzip:.3f}"
        )
    training.plot_losses(
        workdir / "loss.png", result.records, {"gzip -9": gzip}
    )
    stopped = result.step < config.steps
    sample = "" if stopped else _sample(config, result)
    if sample:
        print(f"sample: {sample}")
        (workdir / "sample.txt").write_text(sample + "\n")
    training.write_json(
        workdir / "results.json",
        {
            "step": result.step,
            "held_out_bits_per_byte": ours,
            "held_out_context": "window",
            "gzip_bits_per_byte": gzip,
            "compile_seconds": result.compile_seconds,
            "train_seconds": round(result.train_seconds, 2),
            "total_seconds": round(time.monotonic() - began, 2),
            "peak_memory_bytes": training.peak_memory_bytes(),
            "parameters": count_parameters(result.variables),
            "seed": config.seed,
            "text_sha256": result.text_sha256,
            "config": to_json(config),
            **provenance(),
        },
    )
    print(f"everything is in {workdir}; the same command goes on from there")


def _profile(text: str | None) -> tuple[int, int]:
    """Returns the first step and the number of steps to trace."""
    if text is None:
        return 1, 0
    first, _, count = text.partition(":")
    if not (first.isdecimal() and count.isdecimal() and int(count)):
        raise InputError(
            f"--profile={text!r} must be START:STEPS, such as 10:5 for the "
            "steps 10 to 14"
        )
    return int(first), int(count)


def _writer(name: str, workdir: epath.Path) -> training.MetricsWriter:
    if name == "tensorboard":
        return training.TensorBoard(workdir / name)
    return training.Tracker(name, workdir)


def _sample(config, result) -> str:
    """Continues the prompt, if one process holds all parameters."""
    if not config.sample.tokens or jax.process_count() > 1:
        return ""
    # One device is enough for one row.
    device = jax.devices()[0]
    sampler = Sampler(
        result.model,
        jax.device_put(result.variables, device),
        vocab_size=result.tokenizer.vocab_size,
        seed=config.seed,
    )
    prompt = result.tokenizer.encode(config.sample.prompt)
    sampler.feed(prompt)
    drawn = sampler.draw(
        config.sample.tokens,
        temperature=config.sample.temperature,
        top_p=config.sample.top_p,
    )
    text = result.tokenizer.decode([*prompt, *drawn])
    return text.decode("utf-8", "replace")
