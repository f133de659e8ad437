"""A Python that starts in milliseconds: `python -m ...` runs in a child of one process that has imported the libraries.

    python -I tests/forks.py FOLDER    # answers until its input ends

FOLDER/python then stands in for Python: first on PATH it runs what `dvc repro` and the tests start. The child has the
arguments, files, environment, working directory and search path of a process of its own, and imports the project's
modules itself; only the libraries that an earlier child imported are there already. Most of a tiny stage's time goes
into these. What is shared with other children, and not in a real process: the seed of hashes, and the environment as
libraries read it when they are imported.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

# Without `-m` the real Python takes the place of this one.
CLIENT = """#!{python} -IS
import os, signal, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
import json
with socket.socket(socket.AF_UNIX) as server:
    server.connect(b"\\0" + {name!r})
    request = dict(command=sys.argv[2:], folder=os.getcwd(), environment=dict(os.environ))
    data = json.dumps(request).encode()
    socket.send_fds(server, [len(data).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(data)
    code = int.from_bytes(server.recv(4), "big", signed=True)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
_CODE = struct.Struct(">i")
_SHARED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]  # modules that children may share


class _ReplacedError(BaseException):
    """The process wants to become another `python -m`."""


@dataclass(frozen=True)
class Child:
    """A child that runs.

    Args:
        pid: of it.
        client: the connection to the process that it stands in for.
        modules: the file in which it leaves the names of the modules that it imported.
    """

    pid: int
    client: socket.socket
    modules: TextIO


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """FOLDER/python can be run inside the block."""
    command = [sys.executable, "-I", str(Path(__file__)), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        yield


def serve(folder: Path) -> None:
    """Writes FOLDER/python, says so with a line on stdout, and answers until stdin ends."""
    name = f"popularity-{os.getpid()}".encode()
    children: dict[int, Child] = {}  # by the file descriptors of its process and of its client
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
        listener.bind(b"\0" + name)
        listener.listen(64)
        program = folder / "python"
        program.write_text(CLIENT.format(python=sys.executable, name=name), encoding="utf-8")
        program.chmod(0o755)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fd == 0:
                    for child in children.values():
                        os.kill(child.pid, signal.SIGKILL)
                    return
                if key.fileobj is listener:
                    if new := _fork(listener):
                        for fd in (os.pidfd_open(new.pid), new.client.fileno()):
                            children[fd] = new
                            selector.register(fd, selectors.EVENT_READ, new)
                elif children.get(key.fd) is key.data:  # not a new one with the descriptor of one that has ended
                    child = children[key.fd]
                    if key.fd == child.client.fileno():  # whom it stands in for is gone
                        os.kill(child.pid, signal.SIGKILL)
                    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
                    for fd in [fd for fd, other in children.items() if other is child]:
                        selector.unregister(fd)
                        del children[fd]
                        if fd != child.client.fileno():
                            os.close(fd)
                    _end(child, code)


def _end(child: Child, code: int) -> None:
    with suppress(OSError):
        child.client.sendall(_CODE.pack(code))
    child.client.close()
    child.modules.seek(0)
    for name in child.modules.read().split():
        with suppress(Exception):
            importlib.import_module(name)
    child.modules.close()


def _fork(listener: socket.socket) -> Child | None:
    """A child for the next client; None if that has gone before it said what to run."""
    client, _ = listener.accept()
    head, files, *_ = socket.recv_fds(client, 8, 3)
    size, data = int.from_bytes(head, "big"), bytearray()
    while len(data) < size and (part := client.recv(1 << 16)):
        data += part
    if not data or len(data) < size:
        client.close()
        for fd in files:
            os.close(fd)
        return None
    modules = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed when the child has ended
    pid = os.fork()
    if not pid:
        listener.close()
        client.close()
        for number, fd in enumerate(files):
            os.dup2(fd, number)
            os.close(fd)
        _run(modules, **json.loads(data))
    for fd in files:
        os.close(fd)
    return Child(pid, client, modules)


def _run(modules: TextIO, command: Sequence[str], folder: str, environment: dict[str, str]) -> NoReturn:
    """Runs `python -m <command>` in this process."""
    known, code = {*sys.modules}, 1
    try:
        for number, name in enumerate(("stdin", "stdout", "stderr")):  # the server's know whether theirs are files
            of_server: TextIO = getattr(sys, name)
            mode = "w" if number else "r"
            own = open(number, mode, 1 if number == 2 else -1, of_server.encoding, of_server.errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, own)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        above = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:0] = [folder, *map(os.path.abspath, above)]
        os.execv = _become  # type: ignore[assignment]
        code = _exit_code(command)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:  # noqa: BLE001  # the child must not go on as the server
        traceback.print_exc()
    finally:
        shared = [name for name in sys.modules if name not in known and _is_shared(name)]
        with suppress(Exception):
            print(*shared, file=modules, flush=True)
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def _exit_code(command: Sequence[str]) -> int:
    sys.argv = list(command)
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except _ReplacedError as other:
        return _exit_code(other.args[0])
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001  # as Python itself ends
        traceback.print_exc()
        return 1
    return 0


def _become(path: str, arguments: Sequence[str]) -> NoReturn:
    """Stands in for os.execv: another `python -m` runs in this process, with its environment as it is now."""
    if path != sys.executable or arguments[1:2] != ["-m"]:
        os.execve(path, list(arguments), os.environ)
    raise _ReplacedError(arguments[2:])


def _is_shared(name: str) -> bool:
    """True for a module of the standard library or of an installed one."""
    file: Any = getattr(sys.modules.get(name), "__file__", None)
    return isinstance(file, str) and any(file.startswith(f"{folder}{os.sep}") for folder in _SHARED)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
