"""benchmarks.demo_ladder, networks and ablation on one tiny data set, and their scores on data with known answers."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, silhouette_score, top_k_accuracy_score
from sklearn.preprocessing import StandardScaler

from benchmarks import ablation, demo_ladder, networks
from benchmarks.networks import Vectors, class_scores, linear_probe, retrieval, silhouette
from popularity.core.arrays import Int64Array
from popularity.core.config import load_params, patched, read_yaml
from popularity.evaluation.scores import MODELS
from popularity.network.params import TrainParams
from tests.repository import REPOSITORY


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a tiny data set in which the stages ran, and the table of the ladder."""
    root = tmp_path_factory.mktemp("ladder")
    params = patched(read_yaml(REPOSITORY / "params.yaml"), read_yaml(REPOSITORY / "configs/profiles/tiny.yaml"))
    params["text_model"]["epochs"] = 0
    params["evaluate"]["n_resamples"] = 50
    YAML().dump(params, root / "params.yaml")
    flags = ["--params", str(root / "params.yaml"), "--seeds", "1", "--posts", "300", "--work", str(root / "work")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        demo_ladder.main([*flags, "--csv", str(root / "ladder.csv")])
    (folder,) = (root / "work").iterdir()
    return folder, root / "ladder.csv"


def test_the_ladder_scores_every_model_and_step(ladder: tuple[Path, Path]) -> None:
    table = pl.read_csv(ladder[1])
    assert set(table["rows"]) == {"holdout", "test truth"}
    alone = table.filter(pl.col("minus").is_null())
    assert set(alone["model"]) == {*MODELS, demo_ladder.BEST}
    steps = table.filter(pl.col("minus").is_not_null())
    assert steps.height == 2 * 2 * (len(MODELS) - 1)
    best = alone.filter(rows="test truth", metric="mae").sort("value")["model"][0]
    assert best == demo_ladder.BEST


def test_networks_are_scored_before_and_after_each_part(
    ladder: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.main(["--folder", str(ladder[0]), "--seeds", "0", "--steps", "3", "--csv", str(tmp_path / "classes.csv")])
    table = pl.read_csv(tmp_path / "classes.csv")
    assert table["part"].to_list()[-4:] == [
        "bare class names", *(f"logistic regression of {name}" for name in ("image", "text", "image + text")),
    ]  # fmt: skip
    assert table["top_1"].is_between(0, 1).all()
    assert (table["top_1"] <= table["top_5"]).all()
    assert "after attention" in capsys.readouterr().out
    made = set((ladder[0] / ".state/benchmarks/network").iterdir())
    ablation.main(
        [
            "--folder", str(ladder[0]), "--seeds", "0", "--steps", "3", "--resamples", "20",
            "--only", "raw embeddings only", "- visual prototypes", "--csv", str(tmp_path / "ablation.csv"),
        ]
    )  # fmt: skip
    rows = pl.read_csv(tmp_path / "ablation.csv")
    assert rows["system"].to_list() == ["raw embeddings only", ablation.REFERENCE, "- visual prototypes"]
    reference = rows.filter(system=ablation.REFERENCE)
    assert reference["src_difference"].to_list() == reference["mae_difference"].to_list() == [0.0]
    difference = rows["mae"] - reference["mae"].item()
    assert rows["mae_difference"].to_list() == pytest.approx(difference.to_list())
    assert made < set((ladder[0] / ".state/benchmarks/network").iterdir())  # the first one comes from the cache


def test_rows_of_adapted_towers_train_them_and_their_prompts(tmp_path: Path) -> None:
    """With instance prompts or without; every other row keeps the prompts of the reference, or reuses the network."""
    bench = Mock(params=REPOSITORY / "params.yaml", data=tmp_path, cache=tmp_path / "cache")
    bench.embed.return_value = (tmp_path / "vectors", tmp_path / "explain")
    for folder in ("vectors", "features"):
        (tmp_path / folder).mkdir()
    params = load_params("train", TrainParams, bench.params)
    trained: dict[str, tuple[int, int, bool]] = {}
    for name, system in ablation.SYSTEMS.items():
        bench.network.reset_mock()
        ablation._fit_of(bench, system, params, seed=0)
        *_, last = bench.network.call_args_list
        found, prompts = last.args[0], last.kwargs.get("prompts")
        trained[name] = (found.unfreeze_layers, found.network.prompts.instance_length, prompts is None)
    adapted = {name: values for name, values in trained.items() if values[0] or values[1]}
    assert adapted == {
        "+ instance prompts": (0, 4, True),
        "+ towers adapted": (1, 0, True),
        "+ towers adapted, instance prompts": (1, 4, True),
    }


def clusters(
    n: int = 600, width: int = 12, classes: int = 5, noise: float = 1.0, seed: int = 0
) -> tuple[Vectors, Int64Array]:
    """Vectors around one centre a class; the centres are those of seed 0."""
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed + 1)
    y = rng.integers(classes, size=n)
    values = (centres[y] + noise * rng.normal(size=(n, width))) * np.geomspace(0.01, 100, width)
    return values.astype(np.float32), y


def test_the_probe_is_a_logistic_regression_with_the_best_penalty_over_users() -> None:
    features, y = clusters(noise=0.5)
    new, truth = clusters(noise=0.5, seed=1)
    found = linear_probe(features, y, new, np.arange(len(y)), 6)
    assert found.shape == (len(new), 6)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-5)
    assert (found.argmax(axis=1) == truth).mean() > 0.95
    assert np.exp(found[:, 5]).max() < 1e-30  # a class that does not occur
    scaler = StandardScaler().fit(features.astype(np.float64))
    each = [
        LogisticRegression(C=penalty, max_iter=300)
        .fit(scaler.transform(features.astype(np.float64)), y)
        .predict_log_proba(scaler.transform(new.astype(np.float64)))
        for penalty in networks.INVERSE_PENALTIES
    ]
    assert any(np.allclose(found[:, :5], one, atol=1e-4) for one in each)


def test_folds_of_the_probe_keep_users_apart() -> None:
    """Each user posts one class under a signature of his own: across users nothing is learned but the noise."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(40), 5)
    signature, y = rng.normal(size=(40, 40))[users], rng.integers(5, size=40)[users]
    features = (signature + 0.01 * rng.normal(size=signature.shape)).astype(np.float32)
    sure = [
        float(np.exp(linear_probe(features, y, features, groups, 5)).max(axis=1).mean())
        for groups in (users, np.arange(200))
    ]
    assert sure[0] < sure[1] - 0.1  # folds by user choose a stronger penalty


def slow_ranks(image: Vectors, text: Vectors) -> list[float]:
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (image, text)]
    similarity = unit[0] @ unit[1].T
    return [1 + float((row > row[index]).sum()) for index, row in enumerate(similarity)]


def test_retrieval_against_a_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(150, 8))
    text = image + 1.5 * rng.normal(size=(150, 8))
    found = retrieval(image, 3 * text)
    ranks = np.array(slow_ranks(image, text))
    assert found["recall_1"] == pytest.approx((ranks <= 1).mean())
    assert found["recall_10"] == pytest.approx((ranks <= 10).mean())
    assert found["median_rank"] == np.median(ranks)
    monkeypatch.setattr(networks, "CHUNK_ROWS", 37)
    assert retrieval(image, 3 * text) == found


def test_equal_texts_share_their_ranks() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(200, 16))
    same = {"recall_1": 1 / 200, "recall_10": 10 / 200, "median_rank": 100.5}
    assert retrieval(image, np.ones((200, 16))) == pytest.approx(same)
    pairs = image[np.arange(200) // 2]  # every image and its text twice: right half the time
    assert retrieval(pairs, pairs) == {"recall_1": 0.5, "recall_10": 1.0, "median_rank": 1.5}
    assert retrieval(image, image) == {"recall_1": 1.0, "recall_10": 1.0, "median_rank": 1.0}


def test_class_scores_against_a_reference_and_by_class() -> None:
    rng = np.random.default_rng(0)
    y = rng.choice(7, p=[0.7, *[0.05] * 6], size=400)
    logits = rng.normal(size=(400, 7)) + 1.5 * np.eye(7)[y]
    found = class_scores(logits, y)
    assert found["top_1"] == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert found["top_5"] == pytest.approx(top_k_accuracy_score(y, logits, k=5))
    assert found["macro"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(axis=1)))
    always = class_scores(np.tile(np.eye(7)[0], (400, 1)), y)  # the frequent class for everyone
    assert always["top_1"] > 0.6
    assert always["macro"] == pytest.approx(1 / 7)
    chance = class_scores(np.zeros((400, 7)), y)
    assert chance == pytest.approx({"top_1": 1 / 7, "top_5": 5 / 7, "macro": 1 / 7})


def test_silhouette() -> None:
    features, y = clusters(n=200, noise=0.1)
    found = silhouette(features, y, seed=0)
    assert found == pytest.approx(float(silhouette_score(features, y, metric="cosine")), abs=1e-5)
    assert found is not None
    shuffled = silhouette(features, np.random.default_rng(0).permutation(y), seed=0)
    assert shuffled is not None
    assert shuffled < 0.1 < found
    assert silhouette(features, np.zeros(200, dtype=np.int64), seed=0) is None
    assert silhouette(features, np.arange(200), seed=0) is None
