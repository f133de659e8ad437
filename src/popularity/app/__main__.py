"""A page that answers "what if", in a folder where `dvc repro` has finished.

    python -m popularity.app
    python -m popularity.app --port 8100

It listens on 127.0.0.1 alone, sends nothing anywhere, and stores nothing. The interface is described at /schema.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

from popularity.core.errors import ConfigError
from popularity.core.stage import run

PORT = 8090
SHARED_MEMORY = Path("/dev/shm")  # files of a call never reach a disk there
MIN_FREE = 256 * 2**20  # bytes of it


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m popularity.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT} by default; 0 for any that is free")
    args = parser.parse_args(argv)
    if find_spec("aiohttp") is None:
        raise ConfigError("aiohttp is not installed\n  next: make app, or pip install -c requirements.lock aiohttp")
    os.environ.setdefault("POPULARITY_WORKERS", "0")  # a few drafts need no processes that read ahead
    serve(args.port)


def serve(port: int) -> None:
    """Loads the models, answers a first draft, and listens until it is stopped."""
    # Here: without aiohttp the command says what is missing, and its help needs no models.
    from aiohttp import web  # noqa: PLC0415

    from popularity.app.answers import Answers  # noqa: PLC0415
    from popularity.app.bodies import Draft, Question  # noqa: PLC0415
    from popularity.app.server import HOST, make_server  # noqa: PLC0415
    from popularity.core.allocation import free_shared_memory  # noqa: PLC0415
    from popularity.predict import Predictor, Project  # noqa: PLC0415

    room = (free_shared_memory(SHARED_MEMORY) or 0) >= MIN_FREE
    answers = Answers(Predictor(Project.at(Path()), SHARED_MEMORY if room else None))
    print("loading the models of the last run ...", flush=True)
    with redirect_stderr(StringIO()):
        answers.predict(Question(post=Draft(date=answers.options["last"], title="a first draft")))
    web.run_app(
        make_server(answers),
        host=HOST,
        port=port,
        access_log=None,
        print=lambda _: print(f"http://{HOST}:{port}   (Ctrl-C ends it)", flush=True),
    )


if __name__ == "__main__":
    run(main)
