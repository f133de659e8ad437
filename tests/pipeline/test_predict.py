"""`python -m popularity.predict` on what the graph left: posts of the test split again, new posts, and every fault."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from accelerate.state import AcceleratorState

from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import (
    FOLDS,
    IMAGES,
    MEMBER_PREDICTIONS,
    MEMBERS,
    POSTS,
    PREDICTIONS,
    class_names,
    read_table,
    write_table,
)
from popularity.core.errors import ConfigError, ContractError, DataError
from popularity.core.run_chain import checksum
from popularity.images import ImageReader
from popularity.predict.__main__ import main
from popularity.predict.requests import USER_FIELDS
from stages import embed_text, ensemble, stack, stack_vectors
from tests.clones import Clone, files_below
from tests.encoders.tiny_encoders import save_bert
from tests.repository import stage_flags
from tests.small_images import image_bytes

DATE = "2016-05-01T12:00"


@pytest.fixture
def project(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of what a prediction reads."""
    for name in ("data/interim", "data/features", "data/embeddings", "models", "reports"):
        shutil.copytree(clone.root / name, tmp_path / name, symlinks=True)
    for name in ("params.yaml", "dvc.lock"):
        if (clone.root / name).exists():
            shutil.copy(clone.root / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    AcceleratorState._reset_state()
    return tmp_path


def write_image(clone: Clone, pid: str, file: Path) -> None:
    """An image of the data set as a file of its own."""
    location = read_table(clone.root / "data/interim/images.parquet", IMAGES).filter(pid=pid).row(0, named=True)
    file.parent.mkdir(exist_ok=True)
    reader = ImageReader(clone.root / "data/demo")
    file.write_bytes(reader.read(location["shard"], location["offset"], location["bytes"]))


def write_jsonl(file: Path, posts: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(post) + "\n" for post in posts), encoding="utf-8")
    return file


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    """What `--json` prints of a file of posts."""
    main([*argv, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def repeatable(posts: pl.DataFrame) -> pl.DataFrame:
    """Test posts that flags can describe in full: a photo, by a user whose latest other post has the same profile."""
    kept = []
    for row in posts.filter(split="test", media_type="photo").iter_rows(named=True):
        others = posts.filter(uid=row["uid"]).filter(pl.col("pid") != row["pid"]).sort("posted_at", "pid")
        same = others.height and all(others[name][-1] == row[name] for name in USER_FIELDS)
        if same and row["geo_accuracy"] == (0 if row["latitude"] is None else 16):
            kept.append(row["pid"])
    return posts.filter(pl.col("pid").is_in(kept))


def as_request(post: Mapping[str, Any], image: Path) -> dict[str, Any]:
    """The fields of `--posts` that say what a row of POSTS says."""
    names = class_names(post["concept"])
    return {
        **{name: post[name] for name in ("pid", "title", "tags", "latitude", "longitude")},
        **dict(zip(("category", "subcategory", "concept"), names, strict=True)),
        "user": post["uid"],
        "date": post["posted_at"].isoformat(),
        "image": str(image),
    }


def test_a_post_taken_out_of_the_tables_gets_its_stored_prediction(
    clone: Clone, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own vectors leave the prototypes of its class, which it may represent; all else is as the graph had it."""
    interim = project / "data/interim"
    posts = read_table(interim / "posts.parquet", POSTS)
    chosen = repeatable(posts).head(4)
    assert chosen.height == 4
    members = read_table(project / "models/prototypes/members.parquet", MEMBERS)
    assert members["pid"].is_in(chosen["pid"].implode()).any()
    others = ~pl.col("pid").is_in(chosen["pid"].implode())
    (project / "dvc.lock").unlink(missing_ok=True)  # it has the checksums of the tables
    write_table(posts.filter(others), interim / "posts.parquet", POSTS)
    write_table(read_table(interim / "splits.parquet", FOLDS).filter(others), interim / "splits.parquet", FOLDS)
    requests = []
    for post in chosen.iter_rows(named=True):
        file = project / "pictures" / f"{post['pid']}.jpg"
        write_image(clone, post["pid"], file)
        requests.append(as_request(post, file.relative_to(project)))
    found = printed(capsys, "--posts", str(write_jsonl(project / "posts.jsonl", requests)))
    stored = read_table(clone.root / "data/ensemble/predictions.parquet", PREDICTIONS).filter(
        scheme="refit", model="stack"
    )
    expected = stored.group_by("pid").agg(pl.col("prediction").mean(), pl.col("error_scale").first())
    values = {pid: (prediction, scale) for pid, prediction, scale in expected.iter_rows()}
    for one in found:
        assert one["notes"] == []
        # In bf16 a text's vector depends on the padding of its batch, in its last bits.
        assert (one["popularity"], one["error_scale"]) == pytest.approx(values[one["pid"]], abs=1e-3)
        check_shap_values(one)


def check_shap_values(found: dict[str, Any]) -> None:
    """They add up to the popularity."""
    total = found["expected_value"] + sum(found["shap_by_block"].values())
    assert total == pytest.approx(found["popularity"], abs=1e-6)


def test_the_text_model_is_merged_as_the_stage_merges_it(
    clone: Clone, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a weight that the demo's splits may not choose."""
    stored = read_table(clone.root / "data/ensemble/predictions.parquet", PREDICTIONS).filter(
        scheme="refit", model="stack"
    )
    text_predictions = read_table(clone.root / "data/text_model/predictions.parquet", MEMBER_PREDICTIONS).filter(
        scheme="refit"
    )
    file = project / paths.ENSEMBLE_WEIGHTS
    chosen = json.loads(file.read_text(encoding="utf-8"))
    (project / "dvc.lock").unlink(missing_ok=True)  # it has the checksums of the tables
    file.unlink()  # which may be a link to DVC's cache
    share = 1 - chosen["weights"]["text_model"]
    weights = {name: 0.6 * weight / share for name, weight in chosen["weights"].items()} | {"text_model": 0.4}
    file.write_text(json.dumps({"weights": weights, "files": [], "text_model_offset": 0.5}), encoding="utf-8")
    post = repeatable(read_table(project / "data/interim/posts.parquet", POSTS)).row(0, named=True)
    pid = post["pid"]
    write_image(clone, pid, project / "photo.jpg")
    interim = project / "data/interim"
    for name, contract in (("posts", POSTS), ("splits", FOLDS)):
        table = read_table(interim / f"{name}.parquet", contract)
        write_table(table.filter(pl.col("pid") != pid), interim / f"{name}.parquet", contract)
    request = as_request(post, Path("photo.jpg"))
    (found,) = printed(capsys, "--posts", str(write_jsonl(project / "posts.jsonl", [request])))
    theirs = text_predictions.filter(pid=pid)["prediction"].item()
    merged = stored.filter(pid=pid)["prediction"].mean()
    own = (merged - chosen["weights"]["text_model"] * (theirs - chosen["text_model_offset"])) / share
    assert found["popularity"] == pytest.approx(0.6 * own + 0.4 * (theirs - 0.5), abs=1e-3)
    check_shap_values(found)
    assert found["shap_by_block"]["text model"] == pytest.approx(0.4 * (theirs - 0.5 - own), abs=1e-3)


def test_one_post_on_the_command_line(clone: Clone, tmp_path: Path) -> None:
    posts = read_table(clone.root / "data/interim/posts.parquet", POSTS)
    post = posts.filter(split="test").row(0, named=True)
    write_image(clone, post["pid"], tmp_path / "photo.jpg")
    category, subcategory = class_names(post["subcategory"])
    flags = {"image": tmp_path / "photo.jpg", "title": "Sea and sand", "tags": "beach sun", "user": post["uid"]}
    flags |= {"date": DATE, "category": category, "subcategory": subcategory}
    before = files_below(clone.root, ["."])
    done = clone.run(
        "python", "-B", "-m", "popularity.predict", *(f"--{name}={value}" for name, value in flags.items())
    )
    assert max(map(len, done.stdout.splitlines())) <= 100
    for part in ("popularity", "views", "50%", "80%", "90%", "nearest by image", "nearest by text",
                 "attends to images", "SHAP values", "metadata", "prototype", "single features"):  # fmt: skip
        assert part in done.stdout, part
    assert "note:" not in done.stdout
    assert "it/s]" not in done.stderr
    assert files_below(clone.root, ["."]) == before


def test_files_of_posts_with_every_fault(clone: Clone, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posts = read_table(project / "data/interim/posts.parquet", POSTS)
    known = posts.row(0, named=True)
    category, subcategory = class_names(known["subcategory"])
    given = {"date": DATE, "title": "a cat", "category": category, "subcategory": subcategory, "user": known["uid"]}
    (project / "in").mkdir()
    (project / "in/good.jpg").write_bytes(image_bytes(size=(40, 30)))
    (project / "in/text.jpg").write_bytes(b"no picture")
    (project / "in/cut.jpg").write_bytes(image_bytes(size=(300, 300))[:6000])
    rows: list[tuple[dict[str, Any], str]] = [
        ({**given, "image": "good.jpg"}, ""),
        ({**given, "date": "someday"}, "problem: date 'someday' is no date"),
        ({**given, "image": "text.jpg"}, "no image: text.jpg is unreadable"),
        ({**given, "image": "cut.jpg"}, "no image: cut.jpg is unreadable"),
        ({**given, "image": "gone.jpg"}, "no image: gone.jpg cannot be read"),
        ({**given, "pid": known["pid"]}, "problem: pid"),
        ({**given, "user": "nobody@N9"}, "unknown user: nobody@N9"),
        ({**given, "subcategory": subcategory + "s"}, f"unseen class: {category}/{subcategory}s"),
        ({"date": DATE}, "no class: "),
        ({**given, "latitude": 200, "longitude": 1}, "unusable value: latitude 200"),
    ]
    requests = [post for post, _ in rows]
    found = printed(capsys, "--posts", str(write_jsonl(project / "in/posts.jsonl", requests)))
    assert [one["row"] for one in found] == list(range(len(rows)))
    for one, (_, said) in zip(found, rows, strict=True):
        notes = [*one.get("notes", []), *([f"problem: {one['problem']}"] if "problem" in one else [])]
        assert any(note.startswith(said) for note in notes) if said else notes == [], (said, notes)
    unseen, blank = found[7], found[8]
    assert f"spelled alike: {category}/{subcategory}" in unseen["notes"][-1]
    assert blank["attention_mass"] == {}
    assert blank["nearest"]["visual"] == []
    assert found[0]["attention_mass"]

    columns = sorted(set().union(*requests))
    with (project / "in/posts.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(requests)
    capsys.readouterr()
    main(["--posts", "in/posts.csv", "--out", "out.csv"])
    text = capsys.readouterr().out
    assert "8 of 10 posts predicted, 2 set aside; all in out.csv" in text
    with (project / "out.csv").open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [int(row["row"]) for row in written] == list(range(len(rows)))
    assert [row["problem"] for row in written] == [one.get("problem", "") for one in found]
    for row, one in zip(written, found, strict=True):
        if "problem" not in one:
            assert float(row["popularity"]) == pytest.approx(one["popularity"], abs=1e-4)
            assert row["notes"] == "; ".join(one["notes"])


def one_post(*flags: str) -> None:
    main(["--date", DATE, "--title", "a cat", *flags])


def test_faults_of_a_project_name_the_next_command(project: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read: No such file"):
        one_post("--image", "gone.jpg")
    (project / "posts.csv").write_text("date\nsomeday\nnever\n", encoding="utf-8")
    with pytest.raises(DataError, match="none of 2 posts can be predicted"):
        main(["--posts", "posts.csv"])
    with pytest.raises(DataError, match="someday"):
        one_post("--date", "someday")
    with pytest.raises(DataError, match="that of a stored post"):
        one_post("--pid", read_table(project / "data/interim/posts.parquet", POSTS)["pid"][0])
    (project / "dvc.lock").unlink(missing_ok=True)  # it has the checksums of the vectors
    metadata = project / "data/embeddings/text/minilm/post.json"
    before = metadata.read_text(encoding="utf-8")
    metadata.write_text(json.dumps({**json.loads(before), "weights": "sha256:0"}), encoding="utf-8")
    with pytest.raises(ContractError, match=r"(?s)text encoder .* weights .*dvc repro"):
        one_post()
    metadata.write_text(before, encoding="utf-8")
    shutil.rmtree(project / "models/network")
    with pytest.raises(DataError, match=r"(?s)lacks models/network/network.json.*dvc repro"):
        one_post()


def test_the_stack_may_read_another_encoder_than_the_network(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same one under another name gives the same prediction, from vectors in its own folder."""
    (project / "dvc.lock").unlink(missing_ok=True)
    write_jsonl(project / "posts.jsonl", [{"date": DATE, "title": "a cat", "tags": "sunset"}])
    before = printed(capsys, "--posts", "posts.jsonl")
    params = read_yaml(project / "params.yaml")
    params["embed_text"]["other"] = {**params["embed_text"]["minilm"], "shard_rows": 4}
    params["encoders"]["stack"]["text"] = "other"
    (project / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    with pytest.raises(DataError, match=r"lacks data/embeddings/stack/text/other/title\.npy"):
        main(["--posts", "posts.jsonl"])
    folder = project / "data/embeddings/stack/text"
    shutil.copytree(folder / "minilm", folder / "other")
    assert printed(capsys, "--posts", "posts.jsonl") == before


def test_several_encoders_of_the_stack_predict_as_the_batch(
    clone: Clone, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny tower beside MiniLM: both blocks reach the stack, and posts of the test part get their predictions."""
    (project / "dvc.lock").unlink(missing_ok=True)
    params = read_yaml(project / "params.yaml")
    tower = {"model": "tiny-bert", "weights": f"path:{save_bert(project / 'tower')}", "max_tokens": 12}
    params["embed_text"]["bert"] = {**params["embed_text"]["minilm"], **tower}
    params["encoders"]["stack"]["text"] = ["minilm", "bert"]
    (project / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
    own = {"out": "data/embeddings/text/bert", "resources": "reports/resources/embed_text_bert.json"}
    embed_text.main(stage_flags("embed_text", project, encoder="bert", **own))
    stack_vectors.main(stage_flags("stack_vectors", project))
    stack.main(stage_flags("stack", project, members=None))
    ensemble.main(stage_flags("ensemble", project, **{"text-model": clone.root / "data/text_model"}))
    blocks = pl.read_csv(project / "data/stack/importance.csv")["block"].unique()
    assert {"text.minilm", "text.bert"} <= set(blocks)
    stored = read_table(project / paths.ENSEMBLE_PREDICTIONS, PREDICTIONS).filter(scheme="refit", model="stack")
    values = dict(stored.group_by("pid").agg(pl.col("prediction").mean()).iter_rows())
    interim = project / "data/interim"
    posts = read_table(interim / "posts.parquet", POSTS)
    chosen = repeatable(posts).head(2)
    others = ~pl.col("pid").is_in(chosen["pid"].implode())
    write_table(posts.filter(others), interim / "posts.parquet", POSTS)
    write_table(read_table(interim / "splits.parquet", FOLDS).filter(others), interim / "splits.parquet", FOLDS)
    requests = []
    for post in chosen.iter_rows(named=True):
        file = project / "pictures" / f"{post['pid']}.jpg"
        write_image(clone, post["pid"], file)
        requests.append(as_request(post, file.relative_to(project)))
    found = printed(capsys, "--posts", str(write_jsonl(project / "posts.jsonl", requests)))
    assert len(found) == 2
    for one in found:
        assert one["popularity"] == pytest.approx(values[one["pid"]], abs=1e-3)
        assert {"text.minilm", "text.bert"} <= set(one["shap_by_block"])
        check_shap_values(one)


def test_a_report_of_an_earlier_run_does_not_matter(project: Path) -> None:
    """It records all of params.yaml, and stands last in dvc.lock; `dvc repro evaluate` leaves it behind."""
    params = read_yaml(project / "params.yaml")
    stages = {"featurize": {"params": {"params.yaml": {"featurize": params["featurize"]}}}}
    stages["report"] = {"params": {"params.yaml": {**params, "featurize": {"target_statistics_prior": 9.0}}}}
    lock = project / "dvc.lock"
    before = lock.read_bytes() if lock.exists() else None
    lock.write_text(json.dumps({"schema": "2.0", "stages": stages}), encoding="utf-8")
    try:
        one_post()
    finally:
        lock.unlink() if before is None else lock.write_bytes(before)


def test_outputs_of_different_runs_are_refused(project: Path) -> None:
    """`dvc repro -s train` with another seed, or a run that ended behind it: the stack is of the network before."""
    lock, network = project / "dvc.lock", project / "models/network"
    if not lock.exists():
        pytest.skip("a graph that ran without DVC has no lock")
    file = max(network.iterdir(), key=lambda path: path.suffix == ".safetensors")
    content = file.read_bytes()
    file.unlink()  # which may be a link to DVC's cache
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(file, (2**32, 2**32))
    with pytest.raises(ContractError, match=r"models/network is not what stage train wrote(?s:.*)to run is train"):
        one_post()
    stages = read_yaml(lock)["stages"]
    (out,) = (out for out in stages["train"]["outs"] if out["path"] == "models/network")
    out["md5"] = checksum(network)
    lock.write_text(json.dumps({"schema": "2.0", "stages": stages}), encoding="utf-8")
    with pytest.raises(ContractError, match=r"outputs of different runs(?s:.*)first stage to run is embed_posts"):
        one_post()


def test_parameters_that_the_graph_did_not_run_with_are_refused(project: Path) -> None:
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    for old, new, section in (
        ("target_statistics_prior: 3.0", "target_statistics_prior: 3.5", "featurize"),
        ("nearest: 5", "nearest: 4", "embed_posts"),
    ):
        assert old in text
        params.write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"(?s){section} changed since the graph ran.*dvc repro"):
            one_post()


@pytest.mark.parametrize("argv", [[], ["--posts", "a.csv", "--title", "x"], ["--nonsense", "1"]])
def test_flags_that_make_no_sense(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "usage: python -m popularity.predict" in capsys.readouterr().err
