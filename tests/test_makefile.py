"""Paths given to make: each is one word, or refused in one sentence; nothing of it is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

STANDIN = """#!/bin/sh
printf '%s\\n' "$0 $*" >> "$CALLS"
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, and a stand-in for Python that writes down how it is called."""
    root = tmp_path / "a clone"
    (root / "tools").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, root / name)
    for name in ("python3.11", "python"):
        (root / "tools" / name).write_text(STANDIN)
        (root / "tools" / name).chmod(0o755)
    return root


def make(clone: Path, *arguments: str, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{clone}/tools:{os.environ['PATH']}", "CALLS": str(clone / "tools/calls")}
    for name in ("VENV", "ROOT", "TABLE", "IMAGES", "MAP", "TEST", "TEST_FROM", "PYTHON", "MAKEFLAGS", "MAKELEVEL"):
        environment.pop(name, None)
    environment |= more or {}
    return subprocess.run(["make", *arguments], cwd=clone, env=environment, capture_output=True, text=True, check=False)


def calls(clone: Path) -> list[str]:
    file = clone / "tools/calls"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.parametrize("name", ["my env", "a;touch x", "a'b", 'a"b', "a$HOME", "a`id`", "a(b"])
def test_an_environment_that_cannot_be_quoted_is_refused(clone: Path, name: str) -> None:
    before = sorted(clone.iterdir())
    done = make(clone, "env", f"VENV={clone.parent}/{name}")
    assert done.returncode == 2
    assert "VENV" in done.stderr
    assert calls(clone) == []
    assert sorted(clone.iterdir()) == before


def test_an_environment_is_filled_by_its_own_python(clone: Path) -> None:
    venv = clone.parent / "\u00e9nv"
    done = make(clone, "env", f"VENV={venv}")
    assert done.returncode == 0, done.stderr
    assert calls(clone)[-1] == f"{venv}/bin/python tools/environment.py"
    assert not (clone / "env").exists()


def test_an_environment_that_is_right_is_known(clone: Path) -> None:
    venv = clone.parent / "env"
    for again in range(2):
        assert make(clone, "env", f"VENV={venv}").returncode == 0
        assert len(calls(clone)) == 3, f"{again}: version, venv, tools/environment.py"


@pytest.mark.parametrize("change", ["requirements.lock", "pyproject.toml", "python"])
def test_an_environment_that_is_no_longer_right_is_filled_again(clone: Path, change: str) -> None:
    venv = clone.parent / "env"
    make(clone, "env", f"VENV={venv}")
    if change == "python":
        (venv / "bin/python").unlink()
    else:
        with (clone / change).open("a") as file:
            file.write("# another\n")
    assert make(clone, "env", f"VENV={venv}").returncode == 0
    assert calls(clone)[-1] == f"{venv}/bin/python tools/environment.py"
    assert len(calls(clone)) == 6
    assert len(list(venv.glob(".ready-*"))) == 1


def test_an_environment_that_could_not_be_filled_is_not_ready(clone: Path) -> None:
    failing = '#!/bin/sh\n[ "$1" = tools/environment.py ] && exit 1\n'
    (clone / "tools/python3.11").write_text(failing + STANDIN.partition("\n")[2])
    assert make(clone, "env", f"VENV={clone.parent}/env").returncode == 2
    assert not list((clone.parent / "env").glob(".ready-*"))


def test_another_version_of_python_is_named(clone: Path) -> None:
    (clone / "tools/python3").write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n')
    (clone / "tools/python3").chmod(0o755)
    done = make(clone, "env", "PYTHON=python3")
    assert "Python 3.11 is needed, python3 is Python 3.8.1" in done.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("name", ["My Data", "a; touch x", "it's", 'a"b', "a`touch x`", "\u00e9"])
def test_a_root_reaches_the_command_as_one_word(clone: Path, name: str) -> None:
    assert make(clone, "dataset", f"ROOT=/data/{name}", f"VENV={clone.parent}/env").returncode == 0
    assert calls(clone)[-2].endswith(f"-m popularity.dataset -- /data/{name}")
    assert not (clone / "x").exists()


def test_the_switch_for_links(clone: Path) -> None:
    make(clone, "dataset", "ROOT=/data/a", "FOLLOW_LINKS=1", f"VENV={clone.parent}/env")
    assert calls(clone)[-2].endswith("popularity.dataset --follow-links -- /data/a")


def test_the_profile_is_chosen_or_named(clone: Path) -> None:
    make(clone, "dataset", "ROOT=/data/a", f"VENV={clone.parent}/env")
    assert calls(clone)[-1].endswith("-m popularity.dataset_profile --")
    make(clone, "dataset", "ROOT=/data/a", "PROFILE=full clip", f"VENV={clone.parent}/env")
    assert calls(clone)[-1].endswith("-m popularity.dataset_profile -- full clip")


@pytest.mark.parametrize("name", ["My Posts, new", "a; touch x", "it's", 'a"b', "a`touch x`"])
def test_a_table_and_what_belongs_to_it_reach_the_command_as_words(clone: Path, name: str) -> None:
    given = [f"TABLE=/data/{name}.csv", f"IMAGES=/data/{name}", f"MAP=text={name}", "TEST_FROM=2024-06-01"]
    assert make(clone, "dataset", *given, f"VENV={clone.parent}/env").returncode == 0
    assert make(clone, "dataset", "TABLE=/data/a.csv", "FOLLOW_LINKS=1", f"VENV={clone.parent}/env").returncode == 0
    assert calls(clone)[-2].endswith("--table=/data/a.csv --follow-links")
    assert make(clone, "dataset", *given, f"VENV={clone.parent}/env").returncode == 0
    words = f"--table=/data/{name}.csv --images=/data/{name} --map=text={name} --test-from=2024-06-01"
    assert calls(clone)[-2].endswith(f"-m popularity.dataset {words}")
    assert not (clone / "x").exists()


def test_a_run_of_a_table_is_one_command(clone: Path) -> None:
    """A variable of the shell alone leaves the data as they are: ROOT is a common name."""
    (clone / "tools/git").write_text("#!/bin/sh\n")
    (clone / "tools/git").chmod(0o755)
    make(clone, "repro", "TABLE=/data/my posts.csv", "IMAGES=/data/p", f"VENV={clone.parent}/env")
    called = [each.partition(" -m ")[2] for each in calls(clone)]
    first = called.index("popularity.dataset --table=/data/my posts.csv --images=/data/p")
    assert called[first + 1 : first + 3] == ["popularity.dataset_profile --", "popularity.check"]
    make(clone, "repro", "ROOT=/data/a", f"VENV={clone.parent}/env")
    assert any(each.endswith("popularity.dataset -- /data/a") for each in calls(clone))
    (clone / "tools/calls").unlink()
    make(clone, "repro", f"VENV={clone.parent}/env", more={"ROOT": "/data/a"})
    assert any(each.endswith("popularity.check") for each in calls(clone))
    assert not any("popularity.dataset" in each for each in calls(clone))


def test_a_data_set_needs_a_root_or_a_table(clone: Path) -> None:
    done = make(clone, "dataset", f"VENV={clone.parent}/env")
    assert done.returncode == 2
    assert "make dataset TABLE=posts.csv IMAGES=folder" in done.stderr
    done = make(clone, "dataset", "TABLE=/data/$HOME.csv", f"VENV={clone.parent}/env")
    assert "may hold no dollar sign" in done.stderr


def test_an_archive_without_history_is_refused_before_anything_is_installed(clone: Path) -> None:
    done = make(clone, "repro")
    assert done.returncode == 2
    assert "no git repository: git clone brings the history" in done.stderr
    assert calls(clone) == []


def test_a_checkout_of_another_owner_is_told_what_git_says(clone: Path) -> None:
    advice = "git config --global --add safe.directory /a"
    (clone / "tools/git").write_text(f"#!/bin/sh\necho 'fatal: detected dubious ownership\n\t{advice}' >&2\nexit 128\n")
    (clone / "tools/git").chmod(0o755)
    done = make(clone, "repro")
    assert done.returncode == 2
    assert advice in done.stderr
    assert "another owner" in done.stderr


def test_stages_at_a_time_reach_the_command_as_a_word(clone: Path) -> None:
    (clone / "tools/git").write_text("#!/bin/sh\n")
    (clone / "tools/git").chmod(0o755)
    make(clone, "repro", "JOBS=2; touch x", f"VENV={clone.parent}/env")
    assert any(each.endswith("-m popularity.repro --jobs=2; touch x") for each in calls(clone))
    assert not (clone / "x").exists()


def test_the_page_gets_its_port_and_the_extra_where_it_is_missing(clone: Path) -> None:
    assert make(clone, "app", "PORT=8100; touch x", f"VENV={clone.parent}/env").returncode == 0
    assert calls(clone)[-1].endswith("-m popularity.app --port=8100; touch x")
    assert not (clone / "x").exists()
    without = STANDIN.replace("\nif", '\ncase "$2" in *aiohttp*) exit 1 ;; esac\nif', 1)
    (clone / "tools/python3.11").write_text(without)
    done = make(clone, "app", f"VENV={clone.parent}/other")
    assert "installing the extra app" in done.stdout
    assert calls(clone)[-2].endswith("--constraint requirements.lock aiohttp")
    assert calls(clone)[-1].endswith("-m popularity.app")
