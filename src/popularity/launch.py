r"""Starts a stage with the processes that a topology names: configs/accelerate/<topology>.yaml.

    python -m popularity.launch stages.train --posts data/interim/posts.parquet ...
    POPULARITY_TOPOLOGY=two_cpu_processes python -m popularity.launch stages.train ...
    POPULARITY_TOPOLOGY=nodes POPULARITY_NODES=2 POPULARITY_NODE_RANK=0 \
        POPULARITY_MAIN_ADDRESS=10.0.0.1 POPULARITY_MAIN_PORT=29500 python -m popularity.launch stages.train ...

POPULARITY_TOPOLOGY names the file; without it the machine decides: `cpu` without a GPU, `gpu` with one, `gpus` with
more. The command, and so the graph, is the same everywhere. In a topology, `num_processes: -1` stands for one process
a GPU (one a node without any) and `num_machines: -1` for POPULARITY_NODES.

POPULARITY_NODE_COMMAND is a command that runs what follows it on every node, with the node's number in
POPULARITY_NODE_RANK (configs/cluster has some). With it the launch starts itself everywhere: a plain `dvc repro` on the
first node is enough.

POPULARITY_RESTARTS (default 0) is how often a group that has lost a process is started again, on all nodes. The stages
then go on from what is finished. An error for people ends the run at once: it would only come again. A single process
is not started again.

A single process is run in place of this one, with all threads of the machine: accelerate would do no more for it, and
set OMP_NUM_THREADS to 1. Several are started by `accelerate launch` with that file, never with the user's own
settings. They are told how many they must be (POPULARITY_PROCESSES), because accelerate runs some settings as one
process without a word: see `popularity.encoders.sharding.start_processes`. Exit codes and feature_groups are passed on.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError
from popularity.core.stage import LAUNCHER_VARIABLE, PROCESSES_VARIABLE, REFUSED, run

TOPOLOGIES = Path("configs/accelerate")
TOPOLOGY_VARIABLE = "POPULARITY_TOPOLOGY"
NODES_VARIABLE = "POPULARITY_NODES"
RANK_VARIABLE = "POPULARITY_NODE_RANK"
ADDRESS_VARIABLE = "POPULARITY_MAIN_ADDRESS"
PORT_VARIABLE = "POPULARITY_MAIN_PORT"
COMMAND_VARIABLE = "POPULARITY_NODE_COMMAND"
RESTARTS_VARIABLE = "POPULARITY_RESTARTS"
_PATIENCE = 900  # s that nodes wait for each other


@dataclass(frozen=True)
class Launch:
    """What to start here.

    Args:
        file: the topology.
        processes: on all nodes together.
        nodes: their number.
        on_cpu: no process uses a GPU.
    """

    file: Path
    processes: int
    nodes: int
    on_cpu: bool

    @classmethod
    def read(cls, folder: Path = TOPOLOGIES) -> Launch:
        """From the environment, the topologies in `folder` and the GPUs of this machine.

        Raises:
            ConfigError: no such topology, it wants a GPU where there is none, or a variable of a node is missing.
        """
        gpus = _gpus()
        name = os.environ.get(TOPOLOGY_VARIABLE) or ("gpus" if gpus > 1 else "gpu" if gpus else "cpu")
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        if name not in known:
            raise ConfigError(f"no topology {name!r} in {folder}; {TOPOLOGY_VARIABLE} may be: {', '.join(known)}")
        file = folder / f"{name}.yaml"
        topology = read_yaml(file)
        nodes = int(topology.get("num_machines", 1))
        if nodes != 1:
            _check_node_variables(name)
            nodes = int(os.environ[NODES_VARIABLE])
        elif not topology.get("use_cpu", False) and not gpus:
            raise ConfigError(f"{file} wants a GPU, and this machine has none; {TOPOLOGY_VARIABLE}=cpu needs none")
        processes = int(topology.get("num_processes", -1))
        if processes == -1:
            processes = max(gpus, 1) * nodes
        return cls(file, processes, nodes, bool(topology.get("use_cpu", False)) or not gpus)

    def environment(self) -> dict[str, str]:
        """What the processes are told."""
        told = {
            PROCESSES_VARIABLE: str(self.processes),
            LAUNCHER_VARIABLE: str(os.getpid()),
            # Kept by the launcher, addresses would outlive a restart: new processes would look for dead ones.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        return told | ({"ACCELERATE_USE_CPU": "true"} if self.on_cpu else {})

    def flags(self) -> list[str]:
        """Of `accelerate launch`; they go before the file's values."""
        given = {
            "config_file": self.file,
            "num_processes": self.processes,
            "num_machines": self.nodes,
            "max_restarts": _whole_number(RESTARTS_VARIABLE, os.environ.get(RESTARTS_VARIABLE) or "0"),
            "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS")
            or max(1, (os.cpu_count() or 1) * self.nodes // self.processes),
        }
        if self.nodes > 1:
            given |= {
                "machine_rank": os.environ[RANK_VARIABLE],
                "main_process_ip": os.environ[ADDRESS_VARIABLE],
                "main_process_port": os.environ[PORT_VARIABLE],
                "rdzv_backend": "c10d",  # `static` starts the nodes again one by one, and knows of no failure elsewhere
                "rdzv_conf": f"is_host={int(self.rank == 0)},read_timeout={_PATIENCE},join_timeout={_PATIENCE}",
            }
        return [part for name, value in given.items() for part in (f"--{name}", str(value))]

    def meeting(self) -> dict[str, Any]:
        """How the processes find each other: options of torch that `accelerate launch` has no flags for."""
        if self.nodes == 1:
            return {"standalone": True, "local_addr": "127.0.0.1"}
        # Nodes are ranked by the order of these names, of which only the first one's is used as an address.
        return {"local_addr": os.environ[ADDRESS_VARIABLE] if self.rank == 0 else f"~{self.rank:09d}"}

    @property
    def rank(self) -> int:
        return int(os.environ.get(RANK_VARIABLE, "0"))


def _gpus() -> int:
    """That torch can use. It takes seconds to load, and sees none where the system has no driver of one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        if not Path("/dev/kfd").exists():  # of ROCm
            return 0
    import torch  # noqa: PLC0415

    return torch.cuda.device_count()


def _check_node_variables(topology: str) -> None:
    needed = (NODES_VARIABLE, RANK_VARIABLE, ADDRESS_VARIABLE, PORT_VARIABLE)
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"topology {topology!r} needs {', '.join(missing)}: set on every node")
    nodes, rank, _ = (_whole_number(name, os.environ[name]) for name in (NODES_VARIABLE, RANK_VARIABLE, PORT_VARIABLE))
    if not rank < nodes:
        raise ConfigError(f"{RANK_VARIABLE}: expected 0 to {NODES_VARIABLE} - 1 = {nodes - 1}, found {rank}")


def _whole_number(variable: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"{variable}: expected a whole number, found {value!r}")
    return int(value)


class _RefusedError(Exception):
    """One of the processes has told people what is wrong."""


def _stop(_number: int, _frame: object) -> NoReturn:
    signal.signal(REFUSED, signal.SIG_IGN)  # the others may find the same
    raise _RefusedError


def start(launch: Launch, command: Sequence[str]) -> int:
    """Exit code of `python -m <command>` in the processes of `launch`; does not come back from a single process."""
    os.environ.update(launch.environment())
    if launch.processes == 1:
        os.execv(sys.executable, [sys.executable, "-m", *command])
    return _start_group(launch, command)


def _start_group(launch: Launch, command: Sequence[str]) -> int:
    # Seconds to load, and a single process needs none of it.
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: PLC0415

    # The processes have told what went wrong: elastic's own report of it is a page of tracebacks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").disabled = True  # and it warns of what accelerate passes on
    given = launch_command_parser().parse_args([*launch.flags(), "--module", *command])
    vars(given).update(launch.meeting())
    signal.signal(REFUSED, _stop)
    try:
        launch_command(given)
    except _RefusedError:
        return 1
    except (RendezvousError, ConnectionError) as error:
        raise ConfigError(
            f"the {launch.nodes} nodes are not together: {error or type(error).__name__}\n"
            f"  expected: the same command on all of them within {_PATIENCE} s, and none that has given up\n"
            f"  next: see what the others say, and whether they reach {ADDRESS_VARIABLE} at {PORT_VARIABLE}"
        ) from error
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except SignalException as error:
        return _exit_code(-error.sigval)
    return 0


def _exit_code(code: int) -> int:
    """As a shell tells it: 128 + n of a process that signal n ended."""
    return code if code >= 0 else 128 - code


def main() -> None:
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        raise ConfigError("say which module: python -m popularity.launch stages.train --flag ...")
    everywhere = shlex.split(os.environ.pop(COMMAND_VARIABLE, ""))
    if everywhere:
        os.execvp(everywhere[0], [*everywhere, sys.executable, "-m", "popularity.launch", *command])
    sys.exit(start(Launch.read(), command))


if __name__ == "__main__":
    run(main)
