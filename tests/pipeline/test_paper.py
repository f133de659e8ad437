"""Profile `paper` from features to a submission: the graph with real DVC, on the towers of a tiny CLIP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightgbm
import polars as pl
import pytest
from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import CLASS_LOSSES, FOLDS, POSTS, PROTOTYPE_SCALARS, REFIT, read_table
from popularity.stack.row_selection import RowSelectionParams, kept_rows
from tests.clones import DATED, Clone, copy_of
from tests.encoders.tiny_encoders import save_clip
from tests.repository import BEFORE_ENCODERS, DVC_NAMES, PROFILES

WIDTH = 24  # of the tiny CLIP's vectors, both f_I(x) and f_T(t)
DIM = 512  # of the attention
BAGGING = 0.8
AS_TINY = ("demo", "split")  # sections whose sizes stay those of the fixture's run


@pytest.fixture(scope="module")
def paper(clone: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the finished run in which profile `paper` has run; only sizes and the towers' weights are other than
    listed. The data set and its splits are those of the copy."""
    folder = tmp_path_factory.mktemp("paper")
    weights = {"model": "tiny", "weights": f"path:{save_clip(folder / 'clip', positions=77)}", "revision": ""}
    sizes: dict[str, Any] = {
        **{section: read_yaml(PROFILES / "tiny.yaml")[section] for section in AS_TINY},
        "embed_image": {"clip": {**weights, "image_size": 32}},
        "embed_text": {"clip": weights},
        "evaluate": {"n_resamples": 50},
        "stack": {"num_boost_round": 60, "early_stopping_rounds": 20},
    }
    YAML().dump(sizes, folder / "sizes.yaml")
    copy = copy_of(clone, folder / "clone")
    copy.run("python", "-m", "popularity.profile", "paper")
    copy.run("python", "-m", "popularity.profile", "--patch", str(folder / "sizes.yaml"))
    copy.run("git", "commit", "-q", "-a", "-m", "paper", more=DATED)
    copy.run("python", "-m", "popularity.check")
    (copy.root / ".git" / "first-run").write_text(copy.run("dvc", "repro", "report").stdout, encoding="utf-8")
    return copy


def test_every_stage_runs_and_the_submission_is_valid(paper: Clone) -> None:
    """Of the stages before the encoders that alone whose parameters differ from the fixture's."""
    output = (paper.root / ".git" / "first-run").read_text(encoding="utf-8")
    own = {"embed_image": "embed_image@clip", "embed_text": "embed_text@clip"}
    expected = {stage: entry for stage, entry in (DVC_NAMES | own).items() if stage not in BEFORE_ENCODERS}
    others = [DVC_NAMES[stage] for stage in own]  # entries of the map that are not in use run too
    assert sorted(paper.entries_run(output)) == sorted([*expected.values(), *others, "featurize"])
    assert "valid submission: submissions/submission.csv" in output
    assert paper.run("python", "-m", "popularity.submission").stdout.count("valid: 90 posts") == 2  # both forms


def test_the_vectors_are_those_of_clip_and_a_second_run_does_nothing(paper: Clone) -> None:
    params = read_yaml(paper.root / "params.yaml")
    for kind, block in (("image", "pooled"), ("text", "post")):
        metadata = json.loads((paper.root / f"data/embeddings/{kind}/clip/{block}.json").read_text("utf-8"))
        assert metadata["encoder"] == params[f"embed_{kind}"]["clip"]["model"]
    assert paper.entries_run(paper.run("dvc", "repro", "report").stdout) == []


def test_a_new_post_is_predicted(paper: Clone) -> None:
    predicted = paper.run("python", "-m", "popularity.predict", "--date", "2016-03-01T12:00:00", "--title", "a cat")
    assert "popularity" in predicted.stdout


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
    # Each row is drawn by itself: four standard deviations are 20. All 210 rows would be 39 more.
    assert tree["internal_count"] == pytest.approx(BAGGING * kept.sum(), abs=24)


def test_the_score_is_of_the_stack_alone(paper: Clone) -> None:
    weights = json.loads((paper.root / paths.ENSEMBLE_WEIGHTS).read_text(encoding="utf-8"))
    assert weights["weights"] == {"start": 1.0}
    assert not (paper.root / Path("models/text_model/model.safetensors")).exists()
