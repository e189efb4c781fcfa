"""The training loop, with evaluation, checkpoints and resumption."""

import logging
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from nl_jax.data import (
    Dataset,
    Tokenizer,
    from_json,
    gzip_bits_per_byte,
    held_out_batches,
    make_iterator,
    prepare,
)
from nl_jax.errors import DivergedError, InputError
from nl_jax.models import LanguageModel, to_json
from nl_jax.nested import describe
from nl_jax.training import mesh as mesh_lib
from nl_jax.training.checkpoint import Checkpoints
from nl_jax.training.optimizer import make_schedule
from nl_jax.training.process import StopSignal, versions, write_json
from nl_jax.training.reporting import MetricsLog, Progress
from nl_jax.training.saved_runs import (
    check_same_config,
    check_text,
    check_tokenizer,
)
from nl_jax.training.step import (
    LossSums,
    Programs,
    bits_per_byte,
    compile_programs,
    draw_state,
    plan_state,
)
from nl_jax.training.train_config import TrainConfig

_LOG = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """Result of a run that is finished, or was stopped by a signal."""

    model: LanguageModel
    variables: Any
    tokenizer: Tokenizer
    step: int
    """Steps done in all; fewer than configured if a signal stopped the run."""
    records: list[dict]
    """Metrics by step, those before a restart included."""
    held_out_bits_per_byte: float | None
    """Bits per byte of held-out text at the last evaluation."""
    gzip_bits_per_byte: float
    """Bits per byte of ``gzip -9`` on the held-out text."""
    text_sha256: str
    compile_seconds: dict[str, float]
    train_seconds: float
    """Duration of training in this process, with evaluation and saving."""


def train(
    config: TrainConfig, workdir: str | os.PathLike | None = None
) -> TrainResult:
    """Trains a language model, or resumes the run in ``workdir``.

    Args:
        config: configuration of the run.
        workdir: folder for checkpoints, metrics and the configuration; ``None``
            writes nothing. From a checkpoint of the same configuration the run
            resumes with the same numbers as if it had never stopped.

    Raises:
        InputError: for invalid data, configuration or devices, a damaged
            checkpoint or a full disk. The last good checkpoint stays intact.
        DivergedError: an ``InputError`` too, for a loss or a gradient that is
            not finite.
    """
    mesh = mesh_lib.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run = _Run(config, mesh, workdir)
        try:
            return run.train()
        finally:
            run.close()


class _Run:
    """State of one call of :func:`train`."""

    def __init__(self, config: TrainConfig, mesh, workdir):
        self.config, self.mesh = config, mesh
        self.workdir = None if workdir is None else pathlib.Path(workdir)
        self.checkpoints: Checkpoints | None = None
        if self.workdir is not None:
            if not all(isinstance(i, str) for i in config.model.cms.inners):
                raise InputError(
                    "model.cms.inner holds an optax transformation, which a "
                    "checkpoint cannot name; put it into "
                    "nl_jax.optimizers.NAMED and give its name"
                )
            self.checkpoints = Checkpoints(
                workdir,
                every=config.checkpoint_every,
                keep=config.keep_checkpoints,
            )
        self.start, meta = self._saved_meta()
        saved = None if meta is None else from_json(meta["tokenizer"])
        self.data: Dataset = prepare(config.data, config.seq_len, saved)
        self.model = LanguageModel(config.model)
        tokenizer = self.data.tokenizer
        check_tokenizer(
            tokenizer,
            tokenizer.to_json() if meta is None else meta["tokenizer"],
            self.model,
        )
        self.iterator = make_iterator(
            self.data.train,
            seq_len=config.seq_len,
            batch_size=config.batch_size,
            seed=config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self.tokens_before = 0
        if meta is not None:
            check_text(
                workdir,
                meta["data"]["sha256"],
                self.data.corpus.sha256,
                accept=config.accept_new_config,
            )
            self.iterator.set_state(meta["data"]["iterator"])
            self.tokens_before = meta["data"]["tokens"]
        if self.workdir is not None and jax.process_index() == 0:
            write_json(self.workdir / "config.json", to_json(config))
        self.log = MetricsLog(
            self.workdir, self.start, tensorboard=config.tensorboard
        )

    def train(self) -> TrainResult:
        """Trains until the last step or a signal."""
        config = self.config
        optimizer, shapes = plan_state(config, self.model, self.mesh)
        table = describe(self.model, optimizer, params=shapes.variables)
        _LOG.info("%s", table)
        if config.optimizer.warmup_steps > config.steps:
            _LOG.warning(
                "the learning rate rises until the last step: "
                "optimizer.warmup_steps=%d is more than steps=%d",
                config.optimizer.warmup_steps,
                config.steps,
            )
        if self.start and self.checkpoints is not None:
            _LOG.info("going on from step %d in %s", self.start, self.workdir)
            state = self.checkpoints.restore(self.start, shapes)
        else:
            state = draw_state(config, self.model, optimizer, shapes)
        programs = compile_programs(
            config,
            self.model,
            optimizer,
            self.mesh,
            shapes,
            self.data.tokenizer.byte_lengths,
        )
        schedule = make_schedule(config.optimizer, config.steps)
        tokens = config.batch_size * config.seq_len
        step, pending, held_out = self.start, None, None
        began = time.monotonic()
        progress = Progress(config.steps, step, tokens)

        def record(step: int, metrics) -> None:
            sums, norm = jax.device_get((metrics["sums"], metrics["grad_norm"]))
            loss = float(sums.nats) / float(sums.tokens)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._not_finite(step, loss, float(norm))
            bits = bits_per_byte(sums)
            speed = progress.update(step, loss, bits)
            if step % config.log_every == 0 or step == config.steps:
                values = {
                    "loss": loss,
                    "bits_per_byte": bits,
                    "grad_norm": float(norm),
                    "learning_rate": float(schedule(step - 1)),
                    "tokens": self._tokens(step),
                    "tokens_per_second": round(speed, 1),
                }
                self.log.write(step, values)

        with progress, StopSignal() as stop:
            while step < config.steps:
                batch = mesh_lib.global_batch(self.mesh, next(self.iterator))
                state, metrics = programs.train_step(state, batch)
                step += 1
                if pending is not None:
                    # The device computes this step while the last is recorded.
                    record(*pending)
                pending = step, metrics
                last = step == config.steps or stop.asked
                every = config.eval_every
                evaluate = last or (every and step % every == 0)
                saver = self.checkpoints
                save = saver and (last or saver.due(step))
                if evaluate or save:
                    # Nothing is saved unless its loss is known to be finite.
                    record(*pending)
                    pending = None
                if evaluate and not stop.asked:
                    held_out = self._evaluate(programs, state.variables)
                    self.log.write(step, {"held_out_bits_per_byte": held_out})
                if saver and save:
                    saver.save(step, state, self._meta(step))
                if stop.asked:
                    _LOG.info("stopped by a signal after step %d", step)
                    break
        if self.checkpoints is not None:
            self.checkpoints.wait()
        if held_out is None and step == config.steps:
            held_out = self._evaluate(programs, state.variables)
        return TrainResult(
            model=self.model,
            variables=state.variables,
            tokenizer=self.data.tokenizer,
            step=step,
            records=list(self.log.lines),
            held_out_bits_per_byte=held_out,
            gzip_bits_per_byte=gzip_bits_per_byte(self.data.corpus.held_out),
            text_sha256=self.data.corpus.sha256,
            compile_seconds=programs.compile_seconds,
            train_seconds=time.monotonic() - began,
        )

    def close(self) -> None:
        """Closes files, and stops the threads that write checkpoints."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        self.log.close()

    def _saved_meta(self) -> tuple[int, dict | None]:
        if self.checkpoints is None or self.checkpoints.latest is None:
            return 0, None
        step = self.checkpoints.latest
        meta = self.checkpoints.meta(step)
        check_same_config(self.workdir, meta["config"], self.config)
        if meta["versions"] != versions():
            _LOG.warning(
                "the checkpoint was written with %s; numbers may differ in "
                "their last digits",
                meta["versions"],
            )
        return step, meta

    def _evaluate(self, programs: Programs, variables) -> float:
        total = np.zeros(3)
        config, index = self.config, jax.process_index()
        share = config.batch_size // jax.process_count()
        rows = slice(index * share, (index + 1) * share)
        for tokens, weights in held_out_batches(
            self.data.held_out,
            seq_len=config.seq_len,
            batch_size=config.batch_size,
        ):
            batch = mesh_lib.global_batch(
                self.mesh, (tokens[rows], weights[rows])
            )
            sums = programs.eval_step(variables, *batch)
            total += np.asarray(jax.device_get(sums))
        return bits_per_byte(LossSums(*total))

    def _tokens(self, step: int) -> int:
        """Returns the number of tokens read by the end of a step."""
        config = self.config
        new = (step - self.start) * config.batch_size * config.seq_len
        return self.tokens_before + new

    def _meta(self, step: int) -> dict:
        """Returns the metadata of a checkpoint.

        All processes are at the same position in the data.
        """
        return {
            "config": to_json(self.config),
            "tokenizer": self.data.tokenizer.to_json(),
            "data": {
                "iterator": self.iterator.get_state(),
                "tokens": self._tokens(step),
                "sha256": self.data.corpus.sha256,
            },
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
