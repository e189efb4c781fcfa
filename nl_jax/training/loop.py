"""The training loop, with evaluation, checkpoints and resumption."""

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterable

import jax
from jax.profiler import StepTraceAnnotation

from nl_jax.data import (
    Dataset,
    from_json,
    gzip_bits_per_byte,
    prepare,
    train_batches,
)
from nl_jax.models import LanguageModel, to_json
from nl_jax.models.config_json import check_named
from nl_jax.nested import describe
from nl_jax.pretrained import Pretrained
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.device_peaks import ideal_seconds
from nl_jax.training.evaluation import evaluate_held_out
from nl_jax.training.initial import initial_tokenizer, initial_weights
from nl_jax.training.metric_writers import (
    JsonLines,
    MetricsWriter,
    read_json_lines,
)
from nl_jax.training.optimizer import make_schedule
from nl_jax.training.process import (
    StopSignal,
    locked,
    versions,
    wait_for_processes,
    write_json,
)
from nl_jax.training.profiling import StepProfiler, plan_trace
from nl_jax.training.reporting import Progress
from nl_jax.training.run_clock import RunClock, first_start
from nl_jax.training.run_folder import open_folder
from nl_jax.training.saved_runs import (
    check_folder,
    check_text,
    check_tokenizer,
    restore_newest,
    resumed_data,
)
from nl_jax.training.step import compile_programs, draw_state, plan_state
from nl_jax.training.step_records import StepRecords
from nl_jax.training.train_config import TrainConfig
from nl_jax.training.train_result import TrainResult
from nl_jax.training.train_state import TrainState

_LOG = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    workdir: str | os.PathLike | None = None,
    *,
    initial: Pretrained | None = None,
    writers: Iterable[MetricsWriter] = (),
    skip_damaged: bool = False,
    profile: tuple[int, int] = (1, 0),
) -> TrainResult:
    """Trains a language model, or resumes the run in ``workdir``.

    Args:
        config: configuration of the run.
        workdir: folder for checkpoints, metrics and the configuration, local or
            such as ``gs://bucket/run``; ``None`` writes nothing. From a
            checkpoint of the same configuration the run resumes with the same
            numbers as if it had never stopped. Only one process, or one group
            of processes, can use it at a time.
        initial: weights to begin with; by default those of
            ``config.init_from``, if any. Parameters of the same names begin
            with them.
        writers: destinations of metrics besides ``metrics.jsonl``, such as
            ``TensorBoard(...)``; they are closed at the end.
        skip_damaged: whether to go on from the newest checkpoint that is intact
            if later ones are damaged; those are moved to ``workdir/damaged``.
        profile: first step and number of steps whose XProf trace is written to
            ``workdir/profile``.

    Raises:
        InputError: for invalid data, configuration or devices, a damaged
            checkpoint, a ``workdir`` in use or a full disk. The last good
            checkpoint stays intact.
        DivergedError: an ``InputError`` too, for a loss or a gradient that is
            not finite.
    """
    with contextlib.ExitStack() as stack:
        writers = list(writers)
        for writer in writers:
            stack.callback(writer.close)
        mesh = mesh_lib.make_mesh(config.mesh)
        stack.enter_context(jax.set_mesh(mesh))
        folder = None if workdir is None else open_folder(workdir)
        profiler = plan_trace(folder, config.steps, *profile)
        run = _Run(config, mesh, folder, writers, stack)
        run.open(initial, skip_damaged)
        stack.callback(profiler.close)
        return run.train(profiler)


class _Run:
    """State of one call of :func:`train`; ``stack`` closes its files."""

    def __init__(self, config: TrainConfig, mesh, workdir, writers, stack):
        self.config, self.mesh, self.workdir = config, mesh, workdir
        self._stack = stack
        self.writers: list[MetricsWriter] = writers
        self.records: list[dict] = []
        self.checkpoints: Checkpoints | None = None
        self.start, self.evaluated = 0, True
        self.tokens = 0  # Targets that counted before.
        self.started: float | None = time.time()
        self.in_steps = 0.0
        self.state: TrainState | None = None
        self.model = LanguageModel(config.model)
        if workdir is not None:
            check_named(config.model)
            check_folder(workdir)
            stack.enter_context(locked(workdir))
            self.checkpoints = Checkpoints(
                workdir,
                every=config.checkpoint_every,
                keep=config.keep_checkpoints,
                keep_every=config.keep_every,
            )
            stack.callback(self.checkpoints.close)
            self.lines = JsonLines(workdir / "metrics.jsonl")
            self.writers = [self.lines, *writers]
            stack.callback(self.lines.close)

    def open(self, initial: Pretrained | None, skip_damaged: bool) -> None:
        """Reads the newest checkpoint and the data, and opens the writers."""
        config, workdir = self.config, self.workdir
        self.optimizer, self.shapes = plan_state(config, self.model, self.mesh)
        meta = None
        if self.checkpoints is not None and self.checkpoints.steps:
            meta, restored = restore_newest(
                self.checkpoints, config, self.shapes, skip_damaged
            )
            self.state = restored
            # Older checkpoints do not say whether the step was evaluated.
            self.start = meta["step"]
            self.evaluated = meta.get("evaluated", True)
        saved = None if meta is None else from_json(meta["tokenizer"])
        self.initial: Pretrained | None = None
        if meta is None:
            self.initial = initial or initial_weights(config)
            saved = initial_tokenizer(config, self.initial)
        else:  # Resuming needs neither the weights nor their path.
            began = meta["config"].get("init_from", "")
            config = dataclasses.replace(config, init_from=began)
            self.config = config
        data = config.data
        if meta is not None:
            data = resumed_data(data, meta["config"])
        self.data: Dataset = prepare(data, config.seq_len, saved)
        tokenizer = self.data.tokenizer
        trained = (saved or tokenizer).to_json()
        check_tokenizer(
            tokenizer,
            trained if meta is None else meta["tokenizer"],
            self.model,
        )
        self.iterator = train_batches(
            self.data,
            data,
            seq_len=config.seq_len,
            batch_size=config.batch_size,
            seed=config.seed,
            rows=mesh_lib.process_rows(self.mesh, config.batch_size),
            put=functools.partial(mesh_lib.global_batch, self.mesh),
        )
        self._stack.callback(self.iterator.close)
        if meta is not None:
            check_text(
                workdir,
                meta["data"]["sha256"],
                self.data.corpus.sha256,
                accept=config.accept_new_config,
            )
            position = meta["data"]["iterator"]
            self.iterator.set_state(position)
            if self.iterator.get_state()["order"] != position["order"]:
                self.state = restored.forget()  # Reading begins anew.
            self.tokens = meta["data"]["tokens"]
            self.in_steps = meta.get("seconds_in_steps", 0.0)
        if jax.process_index() != 0:
            self.writers = []
        for writer in self.writers:
            writer.begin(self.start, to_json(config))
        if workdir is not None and self.writers:
            self.records = read_json_lines(workdir / "metrics.jsonl")
            write_json(workdir / "config.json", to_json(config))
            self.started = first_start(workdir / "started.json", meta)

    def train(self, profiler: StepProfiler) -> TrainResult:
        """Trains until the last step or a signal."""
        config = self.config
        table = describe(
            self.model, self.optimizer, params=self.shapes.variables
        )
        _LOG.info("%s", table)
        if self.state is not None:
            _LOG.info("going on from step %d in %s", self.start, self.workdir)
            state, self.state = self.state, None
        else:
            found, self.initial = self.initial, None
            state = draw_state(
                config,
                self.model,
                self.optimizer,
                self.shapes,
                found and found.variables,
            )
        batch = next(self.iterator)
        programs = compile_programs(
            config,
            self.model,
            self.optimizer,
            self.mesh,
            self.shapes,
            self.data.tokenizer.byte_lengths,
            batch,
        )
        wait_for_processes("compiled")
        step, held_out = self.start, None
        ideal = ideal_seconds(self.model, config)
        clock = RunClock(self.started, step, self.in_steps, ideal)
        progress = Progress(
            config.steps, step, config.batch_size * config.seq_len
        )
        done = StepRecords(
            config,
            make_schedule(config.optimizer, config.steps),
            self.writers,
            self.records,
            self.tokens,
            clock,
            progress,
            self._kept,
        )
        saver = self.checkpoints

        def evaluate() -> float | None:
            bits = evaluate_held_out(
                programs.eval_step,
                state.variables,
                self.data,
                config,
                self.mesh,
                stop.agree,
            )
            if bits is None:
                return held_out
            if not self.evaluated:
                done.write(step, {"held_out_bits_per_byte": bits})
            self.evaluated = True
            if step < config.steps:
                progress.note(step, f"held out: {bits:.3f} bits/byte")
            return bits

        with progress, StopSignal(config.stall_seconds) as stop:
            if step == config.steps or not self.evaluated:
                with clock.outside("other"):
                    held_out = evaluate()
            while step < config.steps:
                if step > self.start:
                    with clock.outside("input"):
                        batch = next(self.iterator)
                if profiler.turns(step + 1):
                    done.fetch()
                    with clock.outside("other"):
                        profiler.turn()
                with StepTraceAnnotation("train", step_num=step + 1):
                    state, metrics = programs.train_step(state, batch)
                step += 1
                done.add(step, metrics)
                stop.agree()
                last, every = step == config.steps, config.eval_every
                save = last or (saver is not None and saver.due(step))
                self.evaluated = not (last or (every and step % every == 0))
                if not self.evaluated and not stop.asked:
                    done.fetch()
                    with clock.outside("other"):
                        held_out = evaluate()
                stopping = stop.asked
                if save or stopping:
                    # Nothing is saved unless its loss is known to be finite.
                    done.fetch()
                    if saver is not None:
                        with clock.outside("other"):
                            meta = self._meta(done.tokens, clock.in_steps)
                            self.lines.flush()
                            saver.save(step, state, meta)
                if stopping:
                    _LOG.info("stopped by a signal after step %d", step)
                    break
            if saver is not None:
                saver.wait()
        return TrainResult(
            model=self.model,
            variables=state.variables,
            tokenizer=self.data.tokenizer,
            step=step,
            records=self.records,
            held_out_bits_per_byte=held_out,
            gzip_bits_per_byte=gzip_bits_per_byte(self.data.scored_text()),
            text_sha256=self.data.corpus.sha256,
            compile_seconds=programs.compile_seconds,
            train_seconds=clock.seconds,
        )

    def _meta(self, tokens: int, in_steps: float) -> dict:
        """Returns the metadata of a checkpoint.

        All processes are at the same position in the data.
        """
        return {
            "config": to_json(self.config),
            "tokenizer": self.data.tokenizer.to_json(),
            "data": {
                "iterator": self.iterator.get_state(),
                "tokens": tokens,
                "sha256": self.data.corpus.sha256,
            },
            "evaluated": self.evaluated,
            "started": self.started,
            "seconds_in_steps": round(in_steps, 3),
            "versions": versions(),
        }

    def _kept(self) -> str:
        """Returns what is left of a run that diverges."""
        good = self.checkpoints and self.checkpoints.last_good()
        if good is None:
            return "no checkpoint was saved before"
        return f"the checkpoint of step {good} in {self.workdir} is good"
