r"""Starts a stage in the processes of a topology: configs/accelerate/<topology>.yaml.

    python -m popularity.launch stages.train --posts data/interim/posts.parquet ...
    POPULARITY_TOPOLOGY=two_cpu_processes python -m popularity.launch stages.train ...
    POPULARITY_TOPOLOGY=nodes POPULARITY_NODES=2 POPULARITY_NODE_RANK=0 \
        POPULARITY_MAIN_ADDRESS=10.0.0.1 POPULARITY_MAIN_PORT=29500 python -m popularity.launch stages.train ...

POPULARITY_TOPOLOGY names the file. The default depends on the machine: `cpu` without a GPU, `gpu` with one, `gpus`
with more. A topology of CPUs uses no GPU, also where there is one. Without a topology, a GPU that torch cannot use is a
warning that names the versions of driver and torch. The command, and so the graph, is the same everywhere. In a
topology, `num_processes: -1` means one process a GPU (one a node without GPUs), and `num_machines: -1` means
POPULARITY_NODES.

POPULARITY_NODE_COMMAND is a command that runs its arguments on every node, with the index of the node in
POPULARITY_NODE_RANK (configs/cluster has examples). With it the launch starts itself on all nodes: a plain `dvc repro`
on the first node is enough.

POPULARITY_RESTARTS (default 0) is the number of times that a group which lost a process is started again, on all nodes.
The stages then keep their finished work. An error for people ends the run at once, because it would occur again. A
single process is not started again.

A single process replaces this one and has a thread for every core that it may use (`core/allocation.py`): accelerate
would add nothing and set OMP_NUM_THREADS to 1. Several processes share these cores. They are started by `accelerate
launch` with the topology's file, never with the user's own settings. POPULARITY_PROCESSES holds their number, because
accelerate silently runs some settings as one process: see `popularity.encoders.sharding.start_processes`. Exit codes
and signals are passed on.
"""

from __future__ import annotations

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

from popularity.core.allocation import allocated_cores, bound_cores
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError
from popularity.core.gpus import (
    TOPOLOGIES,
    TOPOLOGY_VARIABLE,
    USE_CPU_VARIABLE,
    topology_file,
    unusable_gpus,
    usable_gpus,
    warn_of_unusable_gpus,
)
from popularity.core.stage import LAUNCHER_VARIABLE, PROCESSES_VARIABLE, REFUSED, put_aside_variables, run

NODES_VARIABLE = "POPULARITY_NODES"
RANK_VARIABLE = "POPULARITY_NODE_RANK"
ADDRESS_VARIABLE = "POPULARITY_MAIN_ADDRESS"
PORT_VARIABLE = "POPULARITY_MAIN_PORT"
COMMAND_VARIABLE = "POPULARITY_NODE_COMMAND"
RESTARTS_VARIABLE = "POPULARITY_RESTARTS"
NODE_TIMEOUT = 900  # s that nodes wait for each other


@dataclass(frozen=True)
class Launch:
    """The processes to start.

    Args:
        file: of the topology.
        processes: number on all nodes together.
        nodes: number of nodes.
        on_cpu: True if no process uses a GPU.
    """

    file: Path
    processes: int
    nodes: int
    on_cpu: bool

    @classmethod
    def read(cls, folder: Path = TOPOLOGIES) -> Launch:
        """The launch that the environment, the topologies in `folder` and the GPUs of this machine define.

        Raises:
            ConfigError: no such topology, it needs a GPU and there is none, or a variable of a node is missing.
        """
        gpus, requested = usable_gpus(), os.environ.get(TOPOLOGY_VARIABLE)
        name = requested or ("gpus" if gpus > 1 else "gpu" if gpus else "cpu")
        file = topology_file(name, folder)
        topology = read_yaml(file)
        use_cpu = bool(topology.get("use_cpu", False))
        nodes = int(topology.get("num_machines", 1))
        if nodes != 1:
            _check_node_variables(name)
            nodes = int(os.environ[NODES_VARIABLE])
        elif not use_cpu and not gpus:
            problem = unusable_gpus() or "this machine has none"
            raise ConfigError(f"{file} needs a GPU, and {problem}; {TOPOLOGY_VARIABLE}=cpu needs none")
        if not gpus and not (requested and use_cpu):
            warn_of_unusable_gpus()
        processes = int(topology.get("num_processes", -1))
        if processes == -1:
            processes = max(gpus, 1) * nodes
        return cls(file, processes, nodes, use_cpu or not gpus)

    def environment(self) -> dict[str, str]:
        """Environment variables of the processes."""
        variables = {
            PROCESSES_VARIABLE: str(self.processes),
            LAUNCHER_VARIABLE: str(os.getpid()),
            # In the launcher, addresses would survive a restart: new processes would connect to dead ones.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        cores = allocated_cores()
        if self.processes == 1 and "OMP_NUM_THREADS" not in os.environ and cores < bound_cores():
            variables["OMP_NUM_THREADS"] = str(cores)  # torch knows the cores of its process, but no quota
        if self.on_cpu:
            variables["CUDA_VISIBLE_DEVICES"] = ""  # libraries look for GPUs too, and take memory there
        return variables | {USE_CPU_VARIABLE: str(self.on_cpu).lower()}

    def flags(self) -> list[str]:
        """Flags of `accelerate launch`; they override the file's values."""
        values = {
            "config_file": self.file,
            "num_processes": self.processes,
            "num_machines": self.nodes,
            "max_restarts": _whole_number(RESTARTS_VARIABLE, os.environ.get(RESTARTS_VARIABLE) or "0"),
            "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS")
            or max(1, allocated_cores() * self.nodes // self.processes),
        }
        if self.nodes > 1:
            values |= {
                "machine_rank": os.environ[RANK_VARIABLE],
                "main_process_ip": os.environ[ADDRESS_VARIABLE],
                "main_process_port": os.environ[PORT_VARIABLE],
                "rdzv_backend": "c10d",  # `static` restarts the nodes one by one and does not see a failure on others
                "rdzv_conf": f"is_host={int(self.rank == 0)},read_timeout={NODE_TIMEOUT},join_timeout={NODE_TIMEOUT}",
            }
        return [word for name, value in values.items() for word in (f"--{name}", str(value))]

    def rendezvous(self) -> dict[str, Any]:
        """Options of torch for the rendezvous of the processes, for which `accelerate launch` has no flags."""
        if self.nodes == 1:
            return {"standalone": True, "local_addr": "127.0.0.1"}
        # Nodes are ranked in the order of these names; only the first node's name is used as an address.
        return {"local_addr": os.environ[ADDRESS_VARIABLE] if self.rank == 0 else f"~{self.rank:09d}"}

    @property
    def rank(self) -> int:
        return int(os.environ.get(RANK_VARIABLE, "0"))


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
    """A process has shown its error to people."""


def _stop(_number: int, _frame: object) -> NoReturn:
    signal.signal(REFUSED, signal.SIG_IGN)  # other processes may send it too
    raise _RefusedError


def start(launch: Launch, command: Sequence[str]) -> int:
    """The exit code of `python -m <command>` in the processes of `launch`; never returns if it is a single process."""
    os.environ.update(launch.environment())
    if launch.processes == 1:
        os.execv(sys.executable, [sys.executable, "-m", *command])
    return _start_group(launch, command)


def _start_group(launch: Launch, command: Sequence[str]) -> int:
    # These take seconds to load, and a single process does not need them.
    from accelerate.commands.launch import launch_command, launch_command_parser  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.api import SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: PLC0415

    # The processes have shown their errors: elastic would add a page of tracebacks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").disabled = True  # it warns of flags that accelerate sets
    arguments = launch_command_parser().parse_args([*launch.flags(), "--module", *command])
    vars(arguments).update(launch.rendezvous())
    signal.signal(REFUSED, _stop)
    try:
        launch_command(arguments)
    except _RefusedError:
        return 1
    except (RendezvousError, ConnectionError) as error:
        raise ConfigError(
            f"the {launch.nodes} nodes did not connect: {error or type(error).__name__}\n"
            f"  expected: the same command on all nodes within {NODE_TIMEOUT} s, and none that has ended\n"
            f"  next: read the other nodes' messages, and check that they reach {ADDRESS_VARIABLE} at {PORT_VARIABLE}"
        ) from error
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except SignalException as error:
        return _exit_code(-error.sigval)
    return 0


def _exit_code(code: int) -> int:
    """The exit code of a shell: 128 + n for a process that signal n ended."""
    return code if code >= 0 else 128 - code


def main() -> None:
    command = sys.argv[1:]
    if not command or command[0].startswith("-"):
        raise ConfigError("name the module: python -m popularity.launch stages.train --flag ...")
    put_aside_variables()  # also in a launch within a launch
    everywhere = shlex.split(os.environ.pop(COMMAND_VARIABLE, ""))
    if everywhere:
        os.execvp(everywhere[0], [*everywhere, sys.executable, "-m", "popularity.launch", *command])
    sys.exit(start(Launch.read(), command))


if __name__ == "__main__":
    run(main)
