"""Profile `paper` from raw files to a submission: the whole graph with real DVC, on the towers of a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.contracts import CLASS_LOSSES, FOLDS, POSTS, PROTOTYPE_SCALARS, REFIT, read_table
from popularity.stack.row_selection import RowSelectionParams, kept_rows
from tests.clones import DATED, Clone, make_clone
from tests.encoders.tiny_encoders import save_clip
from tests.repository import STAGES

pytestmark = pytest.mark.slow
WIDTH = 24  # of the tiny CLIP's vectors, both f_I(x) and f_T(t)
DIM = 512  # of the attention
BAGGING = 0.8


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which profile `paper` has run; only sizes and the towers' weights are other than listed."""
    folder = tmp_path_factory.mktemp("paper")
    weights = {"model": "tiny", "weights": f"path:{save_clip(folder / 'clip', positions=77)}", "revision": ""}
    sizes: dict[str, Any] = {
        "demo": {"posts": 400, "users": 90, "subcategories": 8, "image_size": 32},
        "split": {"n_origins": 1},
        "embed_image": {"clip": {**weights, "image_size": 32}},
        "embed_text": {"clip": weights},
        "evaluate": {"n_resamples": 50},
        "stack": {"num_boost_round": 60, "early_stopping_rounds": 20},
    }
    YAML().dump(sizes, folder / "sizes.yaml")
    clone = make_clone(folder / "clone")
    clone.run("python", "-m", "popularity.profile", "paper")
    clone.run("python", "-m", "popularity.profile", "--patch", str(folder / "sizes.yaml"))
    clone.run("git", "commit", "-q", "-a", "-m", "paper", more=DATED)
    (clone.root / ".git" / "first-run").write_text(clone.run("dvc", "repro", "report").stdout, encoding="utf-8")
    return clone


def test_every_stage_runs_and_the_submission_is_valid(paper: Clone) -> None:
    output = (paper.root / ".git" / "first-run").read_text(encoding="utf-8")
    assert sorted(paper.stages_run(output)) == sorted(STAGES)
    assert "valid submission: submissions/submission.csv" in output


def test_the_network_learns_from_the_training_part_alone(paper: Clone) -> None:
    network = json.loads((paper.root / paths.NETWORK / "network.json").read_text(encoding="utf-8"))
    assert len(network["history"]) == 4
    assert not any(name.startswith("validation") for name in network["history"][0])
    prototypes = json.loads((paper.root / paths.PROTOTYPE_FIELDS).read_text(encoding="utf-8"))
    assert prototypes["transductive"] is False


def test_the_stack_has_eq_11_as_printed_and_nothing_fitted_on_top(paper: Clone) -> None:
    features = pl.read_csv(paper.root / paths.ENSEMBLE_IMPORTANCE)
    dense = features.filter(pl.col("block") != "metadata")["feature"]
    parts = dense.str.replace(r"_component_\d+$", "").value_counts()
    widths = dict(parts.iter_rows())
    assert widths == {
        "image": WIDTH,
        "post": WIDTH,
        "global_prompt": WIDTH,
        "local_prompt": WIDTH,
        **dict.fromkeys(("attended_image", "attended_visual", "attended_text"), DIM),
    }
    scalars = read_table(paper.root / paths.PROTOTYPE_EMBEDDINGS / "scalars.parquet", PROTOTYPE_SCALARS)
    assert not [name for name in scalars.columns if name.startswith("losses.")]


def test_77_percent_of_the_training_rows_are_kept(paper: Clone) -> None:
    """Those of least loss, in the model of the submission."""
    posts = read_table(paper.root / paths.POSTS, POSTS)
    losses = read_table(paper.root / paths.PROTOTYPE_EMBEDDINGS / "losses.parquet", CLASS_LOSSES)
    splits = read_table(paper.root / paths.SPLITS, FOLDS).filter(scheme=REFIT, role="train")
    pids = splits["pid"].sort().to_list()
    assert set(pids) == set(posts.filter(split="train")["pid"])
    kept = kept_rows(pids, losses, RowSelectionParams(0.77, "low_loss"), seed=0)
    assert kept.sum() == round(0.77 * len(pids))
    loss = pl.DataFrame({"pid": pids}).join(losses, on="pid", how="left", maintain_order="left", validate="1:1")
    total = loss.select(pl.mean_horizontal(pl.exclude("pid"))).to_series().to_numpy()
    assert total[kept].max() <= total[~kept].min()
    (model,) = (paper.root / "models/stack/start").glob("lightgbm_*.txt")
    tree = lightgbm.Booster(model_file=model).dump_model()["tree_info"][0]["tree_structure"]
    # Each row is drawn by itself: four standard deviations. All 280 rows would be 51 more.
    assert tree["internal_count"] == pytest.approx(BAGGING * kept.sum(), abs=24)


def test_the_score_is_of_the_stack_alone(paper: Clone) -> None:
    weights = json.loads((paper.root / paths.ENSEMBLE_WEIGHTS).read_text(encoding="utf-8"))
    assert weights["weights"] == {"start": 1.0}
    assert not (paper.root / Path("models/text_model/model.safetensors")).exists()
