"""Real launches of a small module that tells who it is: topologies, their traps, exit codes and feature_groups."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from popularity.core import gpus as gpus_module
from popularity.core.allocation import allocated_cores
from popularity.core.config import read_yaml
from popularity.core.errors import ConfigError
from popularity.launch import Launch
from tests.core.test_gpus import Driver
from tests.core.test_stage import FOREIGN
from tests.repository import REPOSITORY

PROBE = """
import os
import signal
import sys
import time
from pathlib import Path

import torch

from popularity.encoders.sharding import start_processes
from popularity.core.errors import ConfigError
from popularity.core.stage import run


def main():
    state = start_processes()
    total = torch.tensor([state.process_index + 1.0])
    if state.num_processes > 1:
        torch.distributed.all_reduce(total)
    kind = total.to(state.device).device.type
    settings = torch.get_num_threads(), os.environ["OMP_WAIT_POLICY"], "--flag" in sys.argv, kind
    line = ("probe", state.process_index, state.num_processes, int(total), *settings)
    sys.stdout.write(" ".join(map(str, line)) + "\\n")  # whole lines: the processes share one pipe
    sys.stdout.flush()
    state.wait_for_everyone()
    if "--refuse" in sys.argv and state.process_index == 0:
        raise ConfigError("this is refused")
    if "--lose" in sys.argv:
        if state.process_index == state.num_processes - 1 and not Path("lost").exists():
            Path("lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        state.wait_for_everyone()
    if "--exit" in sys.argv and state.process_index == state.num_processes - 1:
        sys.exit(7)
    while "--wait" in sys.argv:
        time.sleep(0.1)


run(main)
"""
NODE = ("POPULARITY_NODES", "POPULARITY_NODE_RANK", "POPULARITY_MAIN_ADDRESS", "POPULARITY_MAIN_PORT")
OURS = ("POPULARITY_TOPOLOGY", "POPULARITY_PROCESSES", "POPULARITY_RESTARTS", "POPULARITY_NODE_COMMAND")
OTHERS = ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the module and the repository's topologies; no GPU, and a home with other settings."""
    shutil.copytree(REPOSITORY / "configs" / "accelerate", tmp_path / "configs" / "accelerate")
    (tmp_path / "probe.py").write_text(PROBE)
    home = tmp_path / "home" / "accelerate"
    home.mkdir(parents=True)
    (home / "default_config.yaml").write_text("num_processes: 5\nunknown_key: true\n")
    monkeypatch.chdir(tmp_path)
    for name in (*OURS, *OTHERS, *NODE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "src"))
    return tmp_path


def launch(topology: str | None, *given: str, **environment: str) -> subprocess.Popen[str]:
    chosen = {} if topology is None else {"POPULARITY_TOPOLOGY": topology}
    command = [sys.executable, "-m", "popularity.launch", *given]
    return subprocess.Popen(
        command, env={**os.environ, **chosen, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit code, sorted lines of the probe, and stderr."""
    lines, messages = process.communicate(timeout=120)
    return process.returncode, sorted(line for line in lines.splitlines() if line.startswith("probe")), messages


def test_without_a_gpu_the_default_is_one_process_with_all_threads() -> None:
    code, lines, messages = finish(launch(None, "probe", "--flag", "--exit"))
    default = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        capture_output=True,
        text=True,
        check=True,
    )
    threads = min(int(default.stdout), allocated_cores())
    assert lines == [f"probe 0 1 1 {threads} PASSIVE True cpu"], messages
    assert code == 7
    assert "error" not in messages


def test_one_process_keeps_the_threads_of_the_environment() -> None:
    code, lines, messages = finish(launch("cpu", "probe", "--refuse", OMP_NUM_THREADS="1"))
    assert lines == ["probe 0 1 1 1 PASSIVE False cpu"]
    assert (code, messages.splitlines()[-1]) == (1, "error: this is refused")
    assert "Traceback" not in messages


def test_two_processes_form_one_group_and_pass_their_exit_code_on() -> None:
    code, lines, messages = finish(launch("two_cpu_processes", "probe", "--flag", "--exit"))
    threads = max(1, allocated_cores() // 2)
    assert lines == [f"probe {index} 2 3 {threads} PASSIVE True cpu" for index in range(2)], messages
    assert code == 7
    assert "Traceback" not in messages


def test_settings_that_accelerate_runs_as_one_process_are_caught(project: Path) -> None:
    """MULTI_CPU with two processes starts one, silently (recipes of accelerate 1.15)."""
    topologies = project / "configs" / "accelerate"
    text = (topologies / "two_cpu_processes.yaml").read_text()
    (topologies / "trap.yaml").write_text(text.replace("distributed_type: MULTI_GPU", "distributed_type: MULTI_CPU"))
    code, lines, messages = finish(launch("trap", "probe"))
    assert (code, lines) == (1, [])
    assert "error: 2 processes were launched, but each of them runs alone" in messages
    assert "Traceback" not in messages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_processes(number: signal.Signals) -> None:
    process = launch("two_cpu_processes", "probe", "--wait")
    assert process.stdout is not None
    assert [process.stdout.readline()[:5] for _ in range(2)] == ["probe", "probe"]
    children = children_of(process.pid)
    assert len(children) == 2
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    process.communicate()


def children_of(pid: int) -> list[str]:
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def test_a_killed_process_ends_the_run() -> None:
    process = launch("two_cpu_processes", "probe", "--wait")
    assert process.stdout is not None
    assert [process.stdout.readline()[:5] for _ in range(2)] == ["probe", "probe"]
    os.kill(int(children_of(process.pid)[0]), signal.SIGKILL)
    code, _, messages = finish(process)
    assert code == 128 + signal.SIGKILL, messages


def test_a_group_that_lost_a_process_is_started_again() -> None:
    code, lines, messages = finish(launch("two_cpu_processes", "probe", "--lose", POPULARITY_RESTARTS="1"))
    threads = max(1, allocated_cores() // 2)
    assert lines == [f"probe {index} 2 3 {threads} PASSIVE False cpu" for index in (0, 0, 1, 1)], messages
    assert code == 0, messages


def test_what_people_have_to_mend_is_not_tried_again() -> None:
    code, lines, messages = finish(launch("two_cpu_processes", "probe", "--refuse", "--wait", POPULARITY_RESTARTS="3"))
    assert (code, len(lines)) == (1, 2), messages
    assert messages.count("error: this is refused") == 1
    assert "Traceback" not in messages


def launch_nodes(*given: str, **environment: str) -> list[subprocess.Popen[str]]:
    """Two nodes on loopback: the later one first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        node = dict(zip(NODE, ("2", "", "127.0.0.1", str(free.getsockname()[1])), strict=True))
    nodes = [{**environment, **node, "POPULARITY_NODE_RANK": rank} for rank in ("1", "0")]
    return [launch("nodes", *given, **node) for node in nodes]


def test_a_process_lost_on_one_node_restarts_both() -> None:
    """Two nodes on loopback form one group, and do so again."""
    for index, process in zip((1, 0), launch_nodes("probe", "--flag", "--lose", POPULARITY_RESTARTS="1"), strict=True):
        code, lines, messages = finish(process)
        assert lines == [f"probe {index} 2 3 {allocated_cores()} PASSIVE True cpu"] * 2, messages
        assert code == 0, messages


def test_a_node_that_gives_up_stops_the_other() -> None:
    later, first = launch_nodes("probe", "--lose", "--refuse", POPULARITY_RESTARTS="3")
    code, lines, messages = finish(first)
    assert (code, len(lines), messages.count("error: this is refused")) == (1, 1, 1), messages
    code, lines, messages = finish(later)
    assert (code, len(lines)) == (1, 1), messages
    assert "error: the 2 nodes did not connect: " in messages


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        node = dict(zip(NODE, ("2", "0", "127.0.0.1", str(taken.getsockname()[1])), strict=True))
        code, _, messages = finish(launch("nodes", "probe", **node))
    assert code == 1
    assert "error: the 2 nodes did not connect: " in messages
    assert "Traceback" not in messages


EVERYWHERE = r"""#!/usr/bin/env bash
# Stands in for srun and mpirun: two copies of the command, which get what those give. mpirun passes named variables on.
passed=()
[[ $0 == *srun ]] && mapfile -t passed < <(env)
while [[ $1 != bash ]]; do
    [[ $1 == -x ]] && passed+=("$2=${!2}")
    shift
done
for rank in 0 1; do
    env -i HOME="$HOME" "${passed[@]}" SLURM_NODEID=$rank OMPI_COMM_WORLD_RANK=$rank OMPI_COMM_WORLD_SIZE=2 "$@" &
    copies+=($!)
done
for copy in "${copies[@]}"; do wait "$copy" || code=$?; done
exit "${code:-0}"
"""


@pytest.mark.parametrize("cluster", ["slurm", "skypilot"])
def test_a_batch_script_starts_the_launch_on_every_node(cluster: str, project: Path) -> None:
    """The scripts as they are, with stand-ins for what clusters have and for `dvc`, whose stage is a launch."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    programs = project / "venv" / "bin"
    programs.mkdir(parents=True)
    shell = {"scontrol": "printf '127.0.0.1\\n127.0.0.2\\n'", "python": f'exec {sys.executable} "$@"'}
    shell |= {"dvc": '[ "$1" = repro ] && exec python -m popularity.launch probe --flag'}
    texts = {name: f"#!/bin/sh\n{line}\n" for name, line in shell.items()} | dict.fromkeys(
        ("srun", "mpirun"), EVERYWHERE
    )
    for name, text in texts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (project / "src").symlink_to(REPOSITORY / "src")
    environment = {**os.environ, "HOME": str(project)}
    if cluster == "slurm":
        script = (REPOSITORY / "configs" / "cluster" / "slurm.sbatch").read_text()
        script = script.replace("$((20000 + SLURM_JOB_ID % 10000))", str(port))
        job = {"SUBMIT_DIR": str(project), "JOB_NUM_NODES": "2", "JOB_NODELIST": "node[0-1]", "CPUS_PER_TASK": "1"}
        environment |= {"VENV": "venv"} | {f"SLURM_{name}": value for name, value in job.items()}
    else:
        task = read_yaml(REPOSITORY / "configs" / "cluster" / "skypilot.yaml")
        assert subprocess.run(["bash", "-n"], input=task["setup"], text=True, check=False).returncode == 0
        script = task["run"].replace("/shared/popularity", str(project)).replace("29500", str(port))
        machines = {"NODE_RANK": "0", "NUM_NODES": "2", "NODE_IPS": "127.0.0.1\n127.0.0.2"}
        environment |= {"STAGES": ""} | {f"SKYPILOT_{name}": value for name, value in machines.items()}
    done = subprocess.run(
        ["bash"], input=script, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    lines = sorted(line[:12] for line in done.stdout.splitlines())
    assert lines == ["probe 0 2 3 ", "probe 1 2 3 "], done.stderr
    assert done.returncode == 0


def test_an_unknown_topology_and_a_missing_module() -> None:
    code, lines, messages = finish(launch("three", "probe"))
    known = ", ".join(sorted(path.stem for path in (REPOSITORY / "configs" / "accelerate").glob("*.yaml")))
    wanted = f"error: no topology 'three' in configs/accelerate; POPULARITY_TOPOLOGY may be: {known}"
    assert (code, lines, messages.splitlines()) == (1, [], [wanted])
    code, _, messages = finish(launch(None, "--flag"))
    assert (code, messages.splitlines()[0].partition(":")[2].strip()[:16]) == (1, "name the module:")


def test_a_node_needs_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "nodes")
    monkeypatch.setenv("POPULARITY_NODES", "2")
    missing = "POPULARITY_NODE_RANK, POPULARITY_MAIN_ADDRESS, POPULARITY_MAIN_PORT"
    with pytest.raises(ConfigError, match=f"topology 'nodes' needs {missing}: set on every node"):
        Launch.read()
    monkeypatch.setenv("POPULARITY_MAIN_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("POPULARITY_MAIN_PORT", "http")
    monkeypatch.setenv("POPULARITY_NODE_RANK", "2")
    with pytest.raises(ConfigError, match="POPULARITY_MAIN_PORT: expected a whole number, found 'http'"):
        Launch.read()
    monkeypatch.setenv("POPULARITY_MAIN_PORT", "29500")
    with pytest.raises(ConfigError, match=r"POPULARITY_NODE_RANK: expected 0 to POPULARITY_NODES - 1 = 1, found 2"):
        Launch.read()
    monkeypatch.setenv("POPULARITY_NODE_RANK", "1")
    monkeypatch.setenv("POPULARITY_RESTARTS", "-1")
    with pytest.raises(ConfigError, match="POPULARITY_RESTARTS: expected a whole number, found '-1'"):
        Launch.read().flags()
    assert Launch.read() == Launch(Path("configs/accelerate/nodes.yaml"), processes=2, nodes=2, on_cpu=True)


@pytest.mark.parametrize(
    ("gpus", "topology", "expected"),
    [(0, "cpu", (1, 1, True)), (1, "gpu", (1, 1, False)), (4, "gpus", (4, 1, False)), (4, "nodes", (12, 3, False))],
)
def test_the_machine_decides(
    gpus: int, topology: str, expected: tuple[int, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    if topology == "nodes":
        for name, value in zip(("POPULARITY_TOPOLOGY", *NODE), ("nodes", "3", "0", "10.0.0.1", "29500"), strict=True):
            monkeypatch.setenv(name, value)
    assert Launch.read() == Launch(Path(f"configs/accelerate/{topology}.yaml"), *expected)


@pytest.mark.parametrize("topology", ["cpu", "two_cpu_processes"])
def test_a_topology_of_cpus_takes_no_gpu(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("POPULARITY_TOPOLOGY", topology)
    assert Launch.read().on_cpu
    given = Launch.read().environment()
    assert (given["ACCELERATE_USE_CPU"], given["CUDA_VISIBLE_DEVICES"]) == ("true", "")
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "gpus")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # of another run
    given = Launch.read().environment()
    assert given["ACCELERATE_USE_CPU"] == "false"
    assert "CUDA_VISIBLE_DEVICES" not in given


MOCKED = """
import os
if "POPULARITY_PROCESSES" in os.environ:
    import torch

    torch.cuda.is_available = torch.accelerator.is_available = lambda: True
    torch.cuda.device_count = lambda: 4
"""


@pytest.mark.parametrize(("topology", "processes"), [("cpu", 1), ("two_cpu_processes", 2)])
def test_processes_of_cpus_take_no_gpu(topology: str, processes: int, project: Path) -> None:
    """Real launches in which CUDA seems to be available; using it would fail."""
    (project / "sitecustomize.py").write_text(MOCKED)
    code, lines, messages = finish(launch(topology, "probe", PYTHONPATH=f"{project}:{REPOSITORY / 'src'}"))
    assert (code, [line.split()[-1] for line in lines]) == (0, ["cpu"] * processes), messages


def test_a_gpu_that_torch_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus_module.warn_of_unusable_gpus.cache_clear()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver(1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "cpu")
    Launch.read()
    assert not caplog.records  # nobody asked for it
    monkeypatch.delenv("POPULARITY_TOPOLOGY")
    assert Launch.read().on_cpu
    assert f"for CUDA 11.4), but torch {torch.__version__}" in caplog.records[0].getMessage()
    monkeypatch.setenv("POPULARITY_TOPOLOGY", "gpu")
    with pytest.raises(ConfigError, match=r"gpu.yaml needs a GPU, and this machine has a GPU .*cannot use it"):
        Launch.read()
    assert len(caplog.records) == 1


def test_threads_follow_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("popularity.launch.bound_cores", lambda: 64)
    monkeypatch.setattr("popularity.launch.allocated_cores", lambda: 6)
    one = Launch(Path("cpu.yaml"), 1, 1, on_cpu=True)
    assert one.environment()["OMP_NUM_THREADS"] == "6"
    flags = Launch(Path("two.yaml"), 2, 1, on_cpu=True).flags()
    assert flags[flags.index("--num_cpu_threads_per_process") + 1] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "OMP_NUM_THREADS" not in one.environment()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("popularity.launch.allocated_cores", lambda: 64)
    assert "OMP_NUM_THREADS" not in one.environment()  # torch's own default


def test_without_a_driver_torch_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    if Path("/dev/kfd").exists():
        pytest.skip("this machine has a GPU of AMD")
    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    assert Launch.read() == Launch(Path("configs/accelerate/cpu.yaml"), 1, 1, True)
    loaded = "import sys, popularity.launch; print(*sorted({'torch', 'accelerate'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "\n"


@pytest.mark.parametrize("topology", ["gpu", "gpus"])
def test_a_gpu_that_is_not_there(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("POPULARITY_TOPOLOGY", topology)
    with pytest.raises(ConfigError, match=f"{topology}.yaml needs a GPU, and this machine has none"):
        Launch.read()


def test_topologies_say_nothing_about_the_model() -> None:
    """The precision is a parameter: accelerate would otherwise take it from here."""
    for file in (REPOSITORY / "configs" / "accelerate").glob("*.yaml"):
        topology = read_yaml(file)
        assert topology["mixed_precision"] == "no"
        assert topology["compute_environment"] == "LOCAL_MACHINE"


@pytest.mark.parametrize("variables", FOREIGN.values(), ids=FOREIGN)
def test_what_another_launch_left_in_the_shell(variables: dict[str, str]) -> None:
    code, lines, messages = finish(launch("cpu", "probe", OMP_NUM_THREADS="1", **variables))
    assert (code, lines) == (0, ["probe 0 1 1 1 PASSIVE False cpu"]), messages
    assert messages.count("put aside") == 1


def test_several_processes_do_not_see_what_another_launch_left_in_the_shell() -> None:
    left = {name: value for variables in FOREIGN.values() for name, value in variables.items()}
    code, lines, messages = finish(launch("two_cpu_processes", "probe", OMP_NUM_THREADS="1", **left))
    assert code == 0, messages
    assert lines == [f"probe {index} 2 3 1 PASSIVE False cpu" for index in range(2)]
