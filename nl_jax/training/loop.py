"""The training loop, with evaluation, checkpoints and resumption."""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterable

import jax

from nl_jax.data import (
    Dataset,
    from_json,
    gzip_bits_per_byte,
    prepare,
    train_batches,
)
from nl_jax.errors import DivergedError
from nl_jax.models import LanguageModel, to_json
from nl_jax.models.config_json import check_named
from nl_jax.nested import describe
from nl_jax.pretrained import Pretrained
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.evaluation import evaluate_held_out
from nl_jax.training.initial import initial_tokenizer, initial_weights
from nl_jax.training.losses import bits_per_byte
from nl_jax.training.metric_writers import (
    JsonLines,
    MetricsWriter,
    read_json_lines,
)
from nl_jax.training.optimizer import make_schedule
from nl_jax.training.process import StopSignal, locked, versions, write_json
from nl_jax.training.reporting import Progress
from nl_jax.training.saved_runs import (
    check_folder,
    check_text,
    check_tokenizer,
    restore_newest,
    resumed_data,
)
from nl_jax.training.step import (
    compile_programs,
    draw_state,
    plan_state,
)
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
) -> TrainResult:
    """Trains a language model, or resumes the run in ``workdir``.

    Args:
        config: configuration of the run.
        workdir: folder for checkpoints, metrics and the configuration; ``None``
            writes nothing. From a checkpoint of the same configuration the run
            resumes with the same numbers as if it had never stopped. Only one
            process, or one group of processes, can use it at a time.
        initial: weights to begin with; by default those of
            ``config.init_from``, if any. Parameters of the same names begin
            with them.
        writers: destinations of metrics besides ``metrics.jsonl``, such as
            ``TensorBoard(...)``; they are closed at the end.
        skip_damaged: whether to go on from the newest checkpoint that is intact
            if later ones are damaged; those are moved to ``workdir/damaged``.

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
        folder = None if workdir is None else pathlib.Path(workdir)
        run = _Run(config, mesh, folder, writers, stack)
        run.open(initial, skip_damaged)
        return run.train()


class _Run:
    """State of one call of :func:`train`; ``stack`` closes its files."""

    def __init__(self, config: TrainConfig, mesh, workdir, writers, stack):
        self.config, self.mesh, self.workdir = config, mesh, workdir
        self._stack = stack
        self.writers: list[MetricsWriter] = writers
        self.records: list[dict] = []
        self.checkpoints: Checkpoints | None = None
        self.start, self.evaluated = 0, True
        self.tokens = 0  # Targets that counted, in all steps.
        self.seconds_before = 0.0
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
            lines = JsonLines(workdir / "metrics.jsonl")
            self.writers = [lines, *writers]
            stack.callback(lines.close)

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
        if jax.process_index() != 0:
            self.writers = []
        for writer in self.writers:
            writer.begin(self.start, to_json(config))
        if workdir is not None and self.writers:
            self.records = read_json_lines(workdir / "metrics.jsonl")
            times = [row["seconds"] for row in self.records if "seconds" in row]
            self.seconds_before = times[-1] if times else 0.0
            write_json(workdir / "config.json", to_json(config))

    def train(self) -> TrainResult:
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
        schedule = make_schedule(config.optimizer, config.steps)
        step, held_out = self.start, None
        pending: list[tuple] = []
        began = time.monotonic()
        progress = Progress(
            config.steps, step, config.batch_size * config.seq_len
        )
        saver = self.checkpoints

        def record() -> None:
            if not pending:
                return
            step, metrics = pending.pop()
            sums, norm = jax.device_get((metrics["sums"], metrics["grad_norm"]))
            # Of a batch that is all padding no target counts.
            loss = float(sums.nats) / (float(sums.tokens) or 1.0)
            self.tokens += round(float(sums.tokens))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._not_finite(step, loss, float(norm))
            bits = bits_per_byte(sums)
            speed = progress.update(step, loss, bits)
            if step % config.log_every == 0 or step == config.steps:
                seconds = self.seconds_before + time.monotonic() - began
                values = {
                    "loss": loss,
                    "bits_per_byte": bits,
                    "grad_norm": float(norm),
                    "learning_rate": float(schedule(step - 1)),
                    "tokens": self.tokens,
                    "seconds": round(seconds, 3),
                    "tokens_per_second": round(speed, 1),
                }
                self._write(step, values)

        def evaluate() -> float | None:
            bits = evaluate_held_out(
                programs.eval_step,
                state.variables,
                self.data,
                config,
                self.mesh,
                lambda: stop.asked,
            )
            if bits is None:
                return held_out
            if not self.evaluated:
                self._write(step, {"held_out_bits_per_byte": bits})
            self.evaluated = True
            if step < config.steps:
                progress.note(step, f"held out: {bits:.3f} bits/byte")
            return bits

        with progress, StopSignal(config.stall_seconds) as stop:
            if step == config.steps or not self.evaluated:
                held_out = evaluate()
            while step < config.steps:
                if step > self.start:
                    batch = next(self.iterator)
                rows = mesh_lib.global_batch(self.mesh, batch)
                state, metrics = programs.train_step(state, rows)
                step += 1
                # The device computes this step while the last is recorded.
                record()
                pending.append((step, metrics))
                stop.agree(step)
                last, every = step == config.steps, config.eval_every
                save = last or (saver is not None and saver.due(step))
                self.evaluated = not (last or (every and step % every == 0))
                if not self.evaluated and not stop.asked:
                    record()
                    held_out = evaluate()
                stopping = stop.asked
                if save or stopping:
                    # Nothing is saved unless its loss is known to be finite.
                    record()
                    if saver is not None:
                        saver.save(step, state, self._meta())
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
            train_seconds=time.monotonic() - began,
        )

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.records.append({"step": step, **values})
        for writer in self.writers:
            writer.write(step, values)

    def _meta(self) -> dict:
        """Returns the metadata of a checkpoint.

        All processes are at the same position in the data.
        """
        return {
            "config": to_json(self.config),
            "tokenizer": self.data.tokenizer.to_json(),
            "data": {
                "iterator": self.iterator.get_state(),
                "tokens": self.tokens,
                "sha256": self.data.corpus.sha256,
            },
            "evaluated": self.evaluated,
            "versions": versions(),
        }

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        good = self.checkpoints and self.checkpoints.last_good()
        kept = "no checkpoint was saved before"
        if good is not None:
            kept = f"the checkpoint of step {good} in {self.workdir} is good"
        raise DivergedError(
            f"stopped at step {step}: loss {loss}, gradient norm {norm}; "
            f"{kept}. Lower --config.optimizer.learning_rate or "
            "--config.optimizer.clip_norm, and begin in another --workdir or "
            "go on with --config.accept_new_config=True"
        )
