"""Serves a trained model over HTTP, with a state of its own for each user.

``python -m experiments.serve runs/default`` answers on 127.0.0.1, port 8000. A
session is a user's own state of the model: it learns what it reads, and holds
nothing of any other. A new name begins a new one::

    curl -N localhost:8000/sessions/ann --json '{"text": "The ", "tokens": 50}'

The answer is a line of JSON for each token as soon as it is drawn, and a last
line with ``finish``. docs/serving.md describes all requests and limits.
"""

import contextlib
import pathlib

from experiments.serving.connection import is_loopback
from experiments.serving.handler import Server
from experiments.serving.requests import Limits
from experiments.serving.sessions import Sessions
from experiments.shared import flags
from nl_jax import training
from nl_jax.errors import InputError
from nl_jax.training.process import locked
from nl_jax.training.run_folder import is_remote

POSITIONAL = "workdir"
FLAGS = {
    "workdir": flags.string("runs/default", "Folder of a training run."),
    "step": flags.integer(None, "Which checkpoint; default newest.", None),
    "host": flags.string("127.0.0.1", "Address to listen on."),
    "port": flags.integer(8000, "0 takes any that is free.", 0),
    "states": flags.string(None, "Folder; default sessions in the workdir."),
    "max_bytes": flags.integer(65_536, "Of the body of a request."),
    "max_tokens": flags.integer(1000, "Drawn for one request."),
    "max_seconds": flags.number(60.0, "For one request.", 1),
    "max_requests": flags.integer(32, "Answered at the same time."),
    "max_sessions": flags.integer(1000, "Sessions that may exist."),
}


def main(values: flags.FlagValues) -> None:
    """Serves until it is interrupted."""
    loaded = training.load_model(values.workdir, values.step)
    if not values.states and is_remote(values.workdir):
        raise InputError(
            f"--states is missing; sessions cannot be kept in {values.workdir}"
        )
    folder = pathlib.Path(
        values.states or pathlib.Path(values.workdir) / "sessions"
    )
    with locked(folder, "--states"):
        _serve(values, loaded, folder)
    print("stopped; sessions are as their last finished request left them")


def _serve(values, loaded, folder):
    sessions = Sessions(folder, loaded, values.max_sessions)
    limits = Limits(**flags.pick(values, Limits._fields))
    try:
        server = Server((values.host, values.port), loaded, sessions, limits)
    except (OSError, OverflowError, UnicodeError) as error:
        raise InputError(
            f"cannot listen on --host={values.host} --port={values.port}: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from error
    with server, contextlib.suppress(KeyboardInterrupt):
        host, port = map(str, server.server_address[:2])
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"serving step {loaded.meta['step']} on http://{place}")
        if not is_loopback(host):
            print("warning: all who reach it can read and change all sessions")
        print(f"states are in {folder}; Ctrl-C stops", flush=True)
        server.serve_forever()
