r"""Starts a stage with the processes that a topology names: configs/accelerate/<topology>.yaml.

    python -m popularity.launch stages.train --posts data/interim/posts.parquet ...
    POPULARITY_TOPOLOGY=two_cpu_processes python -m popularity.launch stages.train ...
    POPULARITY_TOPOLOGY=nodes POPULARITY_NODES=2 POPULARITY_NODE_RANK=0 \
        POPULARITY_MAIN_ADDRESS=10.0.0.1 POPULARITY_MAIN_PORT=29500 python -m popularity.launch stages.train ...

POPULARITY_TOPOLOGY names the file; without it the machine decides: `cpu` without a GPU, `gpu` with one, `gpus` with
more. The command, and so the graph, is the same everywhere. In a topology, `num_processes: -1` stands for one process
a GPU (one a node without any) and `num_machines: -1` for POPULARITY_NODES.

A single process is run in place of this one, with all threads of the machine: accelerate would do no more for it, and
set OMP_NUM_THREADS to 1. Several are started by `accelerate launch` with that file, never with the user's own
settings. They are told how many they must be (POPULARITY_PROCESSES), because accelerate runs some settings as one
process without a word: see `popularity.encoders.parts.start_processes`. Exit codes and signals are passed on.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from popularity.config import read_yaml
from popularity.encoders.parts import PROCESSES_VARIABLE
from popularity.errors import ConfigError
from popularity.stage import run

TOPOLOGIES = Path("configs/accelerate")
TOPOLOGY_VARIABLE = "POPULARITY_TOPOLOGY"
NODES_VARIABLE = "POPULARITY_NODES"
RANK_VARIABLE = "POPULARITY_NODE_RANK"
ADDRESS_VARIABLE = "POPULARITY_MAIN_ADDRESS"
PORT_VARIABLE = "POPULARITY_MAIN_PORT"


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
        gpus = torch.cuda.device_count()
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
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }
        return told | ({"ACCELERATE_USE_CPU": "true"} if self.on_cpu else {})

    def flags(self) -> list[str]:
        """Of `accelerate launch`; they go before the file's values."""
        given = {
            "config_file": self.file,
            "num_processes": self.processes,
            "num_machines": self.nodes,
            "num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS")
            or max(1, (os.cpu_count() or 1) * self.nodes // self.processes),
        }
        if self.nodes > 1:
            given |= {
                "machine_rank": os.environ[RANK_VARIABLE],
                "main_process_ip": os.environ[ADDRESS_VARIABLE],
                "main_process_port": os.environ[PORT_VARIABLE],
            }
        return [part for name, value in given.items() for part in (f"--{name}", str(value))]


def _check_node_variables(topology: str) -> None:
    needed = (NODES_VARIABLE, RANK_VARIABLE, ADDRESS_VARIABLE, PORT_VARIABLE)
    missing = [name for name in needed if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"topology {topology!r} needs {', '.join(missing)}: set on every node")
    for name in (NODES_VARIABLE, RANK_VARIABLE, PORT_VARIABLE):
        if not os.environ[name].isdecimal():
            raise ConfigError(f"{name}: expected a whole number, found {os.environ[name]!r}")
    nodes, rank = (int(os.environ[name]) for name in (NODES_VARIABLE, RANK_VARIABLE))
    if not rank < nodes:
        raise ConfigError(f"{RANK_VARIABLE}: expected 0 to {NODES_VARIABLE} - 1 = {nodes - 1}, found {rank}")


def start(launch: Launch, command: Sequence[str]) -> int:
    """Exit code of `python -m <command>` in the processes of `launch`; does not come back from a single process."""
    os.environ.update(launch.environment())
    if launch.processes == 1:
        os.execv(sys.executable, [sys.executable, "-m", *command])
    # The processes have told what went wrong: elastic's own report of it is a page of tracebacks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*launch.flags(), "--module", *command]))
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
    sys.exit(start(Launch.read(), command))


if __name__ == "__main__":
    run(main)
