"""benchmarks.speed at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import environment
from benchmarks.speed import __main__ as speed
from benchmarks.speed import boosters, features, graph, models, network, resident, text_model
from popularity.encoders.prompting import load_prompt_tower
from popularity.network.accelerator import make_accelerator
from popularity.network.heads import loss_terms
from popularity.text_model.model import fit
from tests.clones import Clone
from tests.encoders.tiny_encoders import image_params, save_bert, save_timm, text_params
from tests.text_model.test_towers import PARAMS as TEXT_MODEL


def row(what: str, posts: int, cpu: float) -> Any:
    ours = {"seconds": 2 * cpu, "cpu": cpu, "mib": 100.0}
    return speed.row_of(what, posts, ours, "plain", {"seconds": 1.0, "cpu": 3 * cpu, "mib": 1.0})


def test_the_table_names_ratios_and_growth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def section(folder: Path, posts: int) -> list[Any]:
        assert folder.is_dir()
        return [row("fake", posts, 0.01 * posts**1.2)]

    monkeypatch.setitem(speed.SECTIONS, "text", section)
    speed.main(["text", "--posts", "100", "1000", "--csv", str(tmp_path / "text.csv"), "--work", str(tmp_path)])
    assert "cpu ~ posts ^ 1.20" in capsys.readouterr().out
    table = pl.read_csv(tmp_path / "text.csv")
    assert table["posts"].to_list() == [100, 1000]
    assert table["ratio"].to_list() == pytest.approx([3.0, 3.0])
    assert speed.row_of("alone", 5, {"seconds": 1.0, "cpu": 1.0, "mib": 1.0})["ratio"] is None
    assert speed.sizes(speed.SMPD_POSTS) == [48_619, 145_858, 486_194]


def test_ours_and_pandas_agree(tmp_path: Path) -> None:
    root = tmp_path / "data"
    features.task_data(root, "600", "B", "4", "32")
    features.task_ingest(root)
    features.task_split(root)
    features.task_features(root)
    features.task_pandas(root)
    assert features.task_difference(root)["worst"] < 1e-9
    ours = pl.read_parquet(root / features.OURS)
    assert ours.width > 30
    moved = ours.with_columns(pl.col("user_posts") + 1)
    assert features.difference(ours, moved) > 0
    with pytest.raises(RuntimeError, match="other posts or columns"):
        features.difference(ours, ours.drop("user_posts"))
    models.task_stack_features(root)
    parts = [part(root) for part in (models.task_stack, models.task_lightgbm)]
    assert all(part[name]["seconds"] > 0 for part in parts for name in ("fit", "predict"))
    found = models.task_boosters(root)
    params = models.refit(root)[2]
    assert found["boosters"] >= params.n_seeds + params.inner_cv.n_splits
    assert all(found[name]["cpu"] > 0 for name in ("one", "plain"))


def test_features_are_measured_without_torch() -> None:
    """Or the memory of a stage's features would be that of torch."""
    code = "import sys; import benchmarks.speed.features; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


def test_the_network_is_measured_without_tables_trees_and_dvc(tmp_path: Path) -> None:
    """On a machine that only trains."""
    names = ("polars", "lightgbm", "optuna", "dvc", "dvclive", "scmrepo", "pandas")
    flags = {"classes": 3, "dim": 16, "depth": 1, "steps": 2, "precision": "fp32"}
    given = ["network", str(tmp_path), "300", json.dumps(flags)]
    code = f"""
import sys
for name in {names}: sys.modules[name] = None
import benchmarks.speed.__main__
from benchmarks.measuring import run_task
from benchmarks.speed.network import TASKS
run_task(TASKS, {given!r})
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["step"]["cpu"] > 0
    assert found["products"]["cpu"] > 0
    assert "fp32" in found["step"]["note"]


def test_the_recorded_products_are_those_of_a_step(tmp_path: Path) -> None:
    """Against torch's own count of forward and backward."""
    params = network.network_params({"dim": 32, "depth": 2, "precision": "fp32"})
    tower = load_prompt_tower(network.minilm())
    widths, folds = (64, tower.spec.width), params.network.prototypes.folds
    content = network.random_content(tmp_path, 300, 21, widths, folds)
    made = content.network(tower, params)
    batch = content.vectors.batch(np.arange(params.batch_size))
    with FlopCounterMode(display=False) as counted:
        terms = loss_terms(made, made(batch), batch)
        torch.stack([values.mean() for values in terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
    accelerator = make_accelerator("fp32")
    shapes = network.products_of_a_step(content, tower, params, accelerator)
    flops = sum(2 * int(np.prod(left)) * right[-1] for left, right, _ in shapes)
    assert flops == pytest.approx(counted.get_total_flops(), rel=0.02)
    assert network.time_products(shapes[:3], accelerator, 1)["seconds"] > 0


def test_encoders_are_measured_beyond_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_timm("test_efficientnet", tmp_path / "model")
    params = image_params(model="test_efficientnet", weights=f"path:{tmp_path / 'model'}")
    monkeypatch.setattr(models, "network_image_params", lambda _: params)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    ours, bare = (part(tmp_path, "24", "") for part in (models.task_images, models.task_bare_images))
    assert bare["seconds"] > 0
    assert models.image_params("").batch_size == params.batch_size
    assert models.image_params("8").batch_size == 8
    assert "images/s" in str(ours["note"])
    texts = models.posts_of(tmp_path, 300)
    assert texts.height == 300


def test_the_text_model_is_fitted_with_and_without_stored_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = text_params(weights=f"path:{save_bert(tmp_path / 'bert')}", max_tokens=12)
    monkeypatch.setattr(text_model, "network_text_params", lambda _: encoder)
    monkeypatch.setattr(text_model, "load_params", lambda *_: TEXT_MODEL)
    given: list[bool] = []

    def fitting(*args: Any) -> Any:
        given.append(args[5] is not None)
        return fit(*args)

    monkeypatch.setattr(text_model, "fit", fitting)
    for stored, task in ((True, text_model.task_stored), (False, text_model.task_whole)):
        assert task(tmp_path, "300")["seconds"] > 0
        assert set(given) == {stored}
        given.clear()


def test_the_boosters_of_a_run_are_counted(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the search of the tiny graph and in its stack, and no file of the run is another one."""
    monkeypatch.chdir(clone.root)
    before = (clone.root / "data/stack/predictions.parquet").read_bytes()
    found = boosters.task_boosters(clone.root)
    assert (clone.root / "data/stack/predictions.parquet").read_bytes() == before
    assert found["stack"]["boosters"] > 10
    assert 0 < found["stack"]["lightgbm"] < found["stack"]["seconds"]


def test_a_resident_process_answers_posts_of_the_test_part(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    found = resident.task_predict(clone.root, "6")
    assert found["rows"] == 6
    assert 0 < found["one"]["cpu"] < found["load"]["cpu"]
    assert found["file"]["seconds"] > 0


def test_with_placeholders_for_its_outputs_the_graph_has_nothing_to_do(tmp_path: Path) -> None:
    features.task_data(tmp_path / "data", "300", "B", "4", "32")
    assert graph.task_nothing_to_do(tmp_path, str(tmp_path / "data"))["ran"] == 0
