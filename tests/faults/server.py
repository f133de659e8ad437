"""Runs stages in children of a process that has imported what they need, and lets faults happen to them.

    python -m tests.faults.server    # in the root of a clone; orders and answers are lines of JSON

A child is a process of its own that calls the `main` of a real stage with the flags of dvc.yaml. What ends it is a
real SIGKILL, its disk is a real file system without space, or one that cannot be written. Forking costs a few
milliseconds where importing torch costs seconds; nothing is computed before the fork.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from popularity.core.stage import run

WRITTEN = ("data", "models", "reports", "submissions", ".state")  # folders that stages write to
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_REMOUNT, _MS_REC, _MS_PRIVATE = 1, 32, 16384, 1 << 18
_TIME = struct.Struct("d")
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
_POLL = 0.0005  # s


@dataclass(frozen=True)
class Order:
    """A run of a stage.

    Args:
        module: of the stage.
        flags: for its main.
        root: working directory.
        seconds: after which it is killed, from its start; None for never.
        write: which of its writes (from 0) it is killed at; None for none.
        delay: seconds from that write to the kill; 0 kills it just before the write.
    """

    module: str
    flags: tuple[str, ...]
    root: str
    seconds: float | None = None
    write: int | None = None
    delay: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (-9 when killed), its messages, and the times (s) of its writes and of its end."""

    code: int
    messages: str
    writes: tuple[float, ...]
    seconds: float


class _Writes:
    """An audit hook that writes down when this process is about to change something below `root`."""

    def __init__(self, root: Path, times: int, fatal: int | None) -> None:
        self.root, self.times, self.fatal, self.count = f"{root}/", times, fatal, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_write(event, arguments):
            return
        os.write(self.times, _TIME.pack(time.monotonic()))
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def _is_write(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":  # what Python has no call for
            return bool(arguments[1] == "renameat2")
        if event == "open":
            path, mode, flags = arguments
            if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")):
                return False
        elif event in _CHANGES:
            path = arguments[0]
        else:
            return False
        if isinstance(path, int):
            return False
        inside = os.path.abspath(os.fsdecode(path)).removeprefix(self.root)  # noqa: PTH100  # of bytes too
        return inside.startswith(WRITTEN)


def execute(order: Order) -> Ended:
    """Runs the stage in a child."""
    with (
        tempfile.TemporaryFile() as times,
        tempfile.TemporaryFile() as messages,
        tempfile.TemporaryFile("r+") as modules,
    ):
        started = time.monotonic()
        child = os.fork()
        if not child:
            _become_stage(order, times.fileno(), messages.fileno(), modules)
        code = _wait(child, order, started, times.fileno())
        seconds = time.monotonic() - started
        times.seek(0)
        messages.seek(0)
        modules.seek(0)
        for name in modules.read().split():  # what stages import on the way: the next child has it from the start
            with suppress(Exception):
                importlib.import_module(name)
        moments = [moment - started for (moment,) in _TIME.iter_unpack(times.read())]
        return Ended(code, messages.read().decode("utf-8", "replace"), tuple(moments), seconds)


def _wait(child: int, order: Order, started: float, times: int) -> int:
    """Exit code of the child, after the kill that was ordered."""
    deadline = None if order.seconds is None else started + order.seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if order.write is not None and order.delay and deadline is None:
            written = os.fstat(times).st_size // _TIME.size
            deadline = now + order.delay if written > order.write else None
        if deadline is not None and now >= deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(_POLL)


def _become_stage(order: Order, times: int, messages: int, modules: TextIO) -> None:
    code, known = 70, {*sys.modules}
    try:
        for stream in (1, 2):
            os.dup2(messages, stream)
        os.chdir(order.root)
        main = importlib.import_module(order.module).main
        sys.addaudithook(_Writes(Path(order.root), times, None if order.delay else order.write))
        run(lambda: main(list(order.flags)))
        code = 0
        print(*sys.modules.keys() - known, file=modules, flush=True)
    except SystemExit as end:
        print(end.code, file=sys.stderr)
        code = 1
    except BaseException:  # noqa: BLE001  # the child must not go on as the server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def digests(root: Path) -> dict[str, str]:
    """Path below `root` to SHA-256, of all files in the folders that stages write to."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in WRITTEN
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


def on_bad_disk(order: Order, outs: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
    """Runs the stage in a copy of `order.root` on a disk of its own: one that cannot be written, then one that has
    room for each of `shares` of another copy of its largest out, then, after several of those, one that has enough.

    Returns the runs that ended badly, each with the files that it left, and the last one (or None) with its files.
    """
    answers = Path(tempfile.mkdtemp())
    disk = Path(tempfile.mkdtemp())
    child = os.fork()
    if not child:
        _use_bad_disk(order, outs, shares, disk, answers / "answer.json")
    _, status = os.waitpid(child, 0)
    try:
        if status:
            raise RuntimeError((answers / "error").read_text() if (answers / "error").exists() else "no namespace")
        found: dict[str, Any] = json.loads((answers / "answer.json").read_text(encoding="utf-8"))
        return found
    finally:
        shutil.rmtree(answers)
        disk.rmdir()


def _use_bad_disk(order: Order, outs: Sequence[str], shares: Sequence[float], disk: Path, answer: Path) -> None:
    try:
        _own_mounts()
        _mount(disk, 0, "")
        source, root = Path(order.root), disk / "root"
        shutil.copytree(source, root, symlinks=True)
        size = max(sum(file.stat().st_size for file in _files(root / out)) for out in outs)
        local = Order(order.module, order.flags, str(root))
        before, bad = digests(root), []
        _mount(disk, _MS_REMOUNT | _MS_RDONLY, "")
        bad.append({"disk": "read-only", **_told(local, root)})
        _mount(disk, _MS_REMOUNT, "")
        for share in shares:
            used = os.statvfs(disk)
            taken = (used.f_blocks - used.f_bfree) * used.f_frsize
            _mount(disk, _MS_REMOUNT, f"size={taken + int(share * size) // used.f_frsize * used.f_frsize}")
            bad.append({"disk": f"room for {share:.0%}", **_told(local, root)})
            _mount(disk, _MS_REMOUNT, f"size={taken + (1 << 28)}")
        last = _told(local, root) if len(shares) > 1 else None
        answer.write_text(json.dumps({"before": before, "bad": bad, "last": last}), encoding="utf-8")
        os._exit(0)
    except BaseException:  # noqa: BLE001  # the child must not go on as the server
        (answer.parent / "error").write_text(traceback.format_exc())
        os._exit(1)


def _told(order: Order, root: Path) -> dict[str, Any]:
    ended = execute(order)
    return {"code": ended.code, "messages": ended.messages, "files": digests(root)}


def _files(out: Path) -> list[Path]:
    return [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]


def _own_mounts() -> None:
    """Gives this process a namespace in which it may mount; without root by way of a user namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _check(libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if user else 0)))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))


def _mount(disk: Path, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.mount(b"none", os.fsencode(disk), b"tmpfs", flags, data.encode()))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    tasks: dict[str, Callable[..., Any]] = {
        "execute": lambda order: vars(execute(Order(**order))),
        "on_bad_disk": lambda order, outs, shares: on_bad_disk(Order(**order), outs, shares),
    }
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(tasks[request.pop("task")](**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
