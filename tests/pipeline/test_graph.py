"""The graph as a user runs it: real DVC in a clean clone, profile tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl

from popularity.core.config import read_yaml
from popularity.demo import DemoParams, generate
from popularity.submission.ids import expected_ids
from popularity.submission.validate import validate
from tests.clones import Clone, copy_of, files_below
from tests.repository import STAGES


def test_first_run_runs_every_stage_and_prints_scores_and_submission(clone: Clone) -> None:
    output = (clone.root / ".git" / "first-run").read_text(encoding="utf-8")
    assert sorted(clone.stages_run(output)) == sorted(STAGES)
    assert "Scores with 95% intervals" in output
    assert "valid submission: submissions/submission.csv" in output


def test_second_run_does_nothing(clone: Clone) -> None:
    assert clone.stages_run(clone.run("dvc", "repro").stdout) == []
    assert "up to date" in clone.run("dvc", "status").stdout


def test_submission_is_valid_and_in_the_order_of_the_published_files(clone: Clone) -> None:
    published = json.loads((clone.root / "data/demo/test_allmetadata_json/test_category.json").read_text("utf-8"))
    rows = pl.read_csv(clone.root / "submissions/submission.csv", schema_overrides={"post_id": pl.String})
    assert rows["post_id"].to_list() == [f"post{row['Pid']}" for row in published]
    ids = expected_ids(clone.root / "data/demo/test_allmetadata_json")
    for form in ("json", "csv"):
        validate(clone.root / f"submissions/submission.{form}", ids)


def test_a_failed_stage_leaves_the_last_output(clone: Clone, tmp_path: Path) -> None:
    copy = copy_of(clone, tmp_path / "clone")
    params = copy.root / "params.yaml"
    text = params.read_text(encoding="utf-8")
    before = {path: (copy.root / path).read_bytes() for path in files_below(copy.root, ["reports", "submissions"])}
    params.write_text(text.replace("confidence_level: 0.95", "confidence_level: 95"), encoding="utf-8")
    failed = copy.run("dvc", "repro", check=False)
    assert failed.returncode
    assert "evaluate.confidence_level" in failed.stderr
    assert {
        path: (copy.root / path).read_bytes() for path in files_below(copy.root, ["reports", "submissions"])
    } == before
    params.write_text(text, encoding="utf-8")
    assert copy.stages_run(copy.run("dvc", "repro").stdout) == []


def test_every_file_is_an_out_or_in_git(clone: Clone) -> None:
    outs = _outs(clone)
    assert len(outs) > len(STAGES)
    tracked = {Path(line) for line in clone.run("git", "ls-files").stdout.splitlines()}
    for path in files_below(clone.root, ["data", "models", "reports", "submissions"]):
        is_out = any(out == path or out in path.parents for out in outs)
        assert is_out or path in tracked or path.name == ".gitignore", path


def _outs(clone: Clone) -> list[Path]:
    """Paths of all outs, as DVC resolved them."""
    code = "from dvc.repo import Repo; print(*(out.def_path for out in Repo().index.outs), sep='\\n')"
    return [Path(line) for line in clone.run("python", "-c", code).stdout.splitlines()]


def test_every_declared_plot_has_data(clone: Clone) -> None:
    shown = json.loads(clone.run("dvc", "plots", "show", "--json").stdout)
    declared = [next(iter(plot)) for plot in read_yaml(clone.root / "dvc.yaml")["plots"]]
    drawn = {name.split("::")[-1] for name in shown["data"]}
    assert drawn == set(declared)
    assert not shown.get("errors")
    for name, renders in shown["data"].items():
        for render in renders:
            content = render["content"]
            values = json.loads(content) if isinstance(content, str) else content
            assert values["data"]["values"], name


def test_a_manifest_follows_the_code_and_reruns_nothing(clone: Clone, tmp_path: Path) -> None:
    """After a commit that touches no code a repeated stage gives the same bytes; after one that does, all but this."""
    copy = copy_of(clone, tmp_path / "clone")
    folder = copy.root / "models/prototypes"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    append(copy, "README.md", "A note.\n")
    assert copy.stages_run(copy.run("dvc", "repro", "--force", "--single-item", "prototypes").stdout) == ["prototypes"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    append(copy, "stages/prototypes.py", "# A note.\n")
    assert copy.stages_run(copy.run("dvc", "repro", "embed_posts").stdout) == ["prototypes"]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["manifest.json"]
    revision = copy.run("git", "rev-parse", "HEAD").stdout.strip()
    assert json.loads(after["manifest.json"])["code"] == {"modified": False, "revision": revision}


def append(clone: Clone, name: str, text: str) -> None:
    """Commits `text` at the end of a file."""
    with (clone.root / name).open("a", encoding="utf-8") as stream:
        stream.write(text)
    clone.run("git", "commit", "-q", "-a", "-m", "note")


def test_an_experiment_on_another_data_set_in_a_copy_of_the_tree(clone: Clone, tmp_path: Path) -> None:
    """`--temp -S dataset.root=...` on a folder of images and user file form B; the workspace stays as it is.

    Without the search: it reads nothing of a data set that the features do not hold.
    """
    root = tmp_path / "other"
    generate(DemoParams(5, 150, 40, 6, 32, 0.3, "B", 2.3, "time"), root, tmp_path / "truth")
    for shard in root.glob("*_images*.tar"):
        shutil.unpack_archive(shard, root)
        shard.unlink()
    before = (clone.root / "reports/metrics.json").read_bytes()
    changes = (f"dataset.root={root}", "tune.candidates=[]", "tune.n_trials=0")
    sets = [part for change in changes for part in ("--set-param", change)]
    clone.run("dvc", "exp", "run", "--temp", "--name", "other", *sets)
    assert (clone.root / "reports/metrics.json").read_bytes() == before
    (reference,) = clone.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/other").stdout.split()
    metrics = json.loads(clone.run("git", "show", f"{reference}:reports/metrics.json").stdout)
    assert metrics["holdout"]["stack"]["mae"] != json.loads(before)["holdout"]["stack"]["mae"]
    assert str(root) in clone.run("git", "show", f"{reference}:dvc.lock").stdout


def test_a_user_error_is_one_message_without_a_traceback(clone: Clone) -> None:
    flags = [f"--{name}=x" for name in ("root", "posts", "users", "columns", "quarantine", "summary", "resources")]
    done = clone.run("python", "-m", "stages.ingest", *flags, check=False)
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
