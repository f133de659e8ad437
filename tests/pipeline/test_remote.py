"""The versions of all artifacts in an S3 remote: a real server on loopback that checks credentials."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest

from popularity.core import paths
from popularity.core.contracts import FOLDS, MEMBER_PREDICTIONS, POSTS, PREDICTIONS, read_table
from popularity.encoders.text import network_text_params
from popularity.stack import StackModel, read_blocks
from popularity.text_model import TextModel
from popularity.tuning.objective import StackInputs
from popularity.validation import rows_of
from popularity.validation.folds import load_fold
from tests.clones import Clone, copy_of

BUCKET = "popularity"
# Of the set-up: one for a user, its rights, its key and the bucket. The server checks every later request.
UNCHECKED_ACTIONS = 4


@dataclass(frozen=True)
class Server:
    """An S3 server with the bucket `popularity` and one user.

    Args:
        url: on loopback.
        credentials: the user's, as AWS_* variables.
        settings: of every client: no settings of the user, no proxy, no metadata service of a cloud.
    """

    url: str
    credentials: Mapping[str, str]
    settings: Mapping[str, str]

    def environment(self, **credentials: str) -> dict[str, str]:
        return {**self.settings, **credentials}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    log, empty = folder / "log", folder / "empty"
    empty.touch()
    settings = {"AWS_CONFIG_FILE": str(empty), "AWS_SHARED_CREDENTIALS_FILE": str(empty), "NO_PROXY": "127.0.0.1"}
    settings |= {"AWS_EC2_METADATA_DISABLED": "true", "no_proxy": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, **settings, "INITIAL_NO_AUTH_ACTION_COUNT": str(UNCHECKED_ACTIONS)},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(port, process, log)
        url = f"http://127.0.0.1:{port}"
        yield Server(url, set_up(url), settings)
    finally:
        process.terminate()
        process.wait(20)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    pytest.fail(f"the S3 server did not start:\n{log.read_text()}")


def set_up(url: str) -> dict[str, str]:
    """Creates the user and the bucket, and returns the user's credentials."""
    first = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "a", "aws_secret_access_key": "a"}
    iam, name = boto3.client("iam", **first), "person"
    iam.create_user(UserName=name)
    everything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [everything]})
    iam.put_user_policy(UserName=name, PolicyName="s3", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    boto3.client("s3", **first).create_bucket(Bucket=BUCKET)
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def configure(clone: Clone, server: Server, bucket: str = BUCKET) -> None:
    """The recipe of the docs, without credentials."""
    clone.run("dvc", "remote", "add", "-d", "-f", "store", f"s3://{bucket}/cache")
    clone.run("dvc", "remote", "modify", "store", "endpointurl", server.url)


@pytest.fixture(scope="module")
def pushed(clone: Clone, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the finished run, all of it pushed."""
    copy = copy_of(clone, tmp_path_factory.mktemp("pushed") / "clone")
    configure(copy, server)
    copy.run("git", "commit", "-q", "-a", "-m", "remote")
    assert "files pushed" in copy.run("dvc", "push", more=server.environment(**server.credentials)).stdout
    return copy


@pytest.fixture(scope="module")
def pulled(pushed: Clone, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clean clone that pulled, with credentials in .dvc/config.local and wrong ones in the environment."""
    fresh = fresh_clone(pushed, tmp_path_factory.mktemp("pulled") / "clone")
    for option, value in zip(("access_key_id", "secret_access_key"), server.credentials.values(), strict=True):
        fresh.run("dvc", "remote", "modify", "--local", "store", option, value)
    assert fresh.run("git", "status", "--porcelain").stdout == ""  # the credentials are ignored by git
    wrong = {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"}
    fresh.run("dvc", "pull", more=server.environment(**wrong))
    return fresh


def fresh_clone(source: Clone, root: Path) -> Clone:
    source.run("git", "clone", "-q", str(source.root), str(root))
    assert not (root / "data" / "stack").exists()
    return Clone(root)


def test_a_clean_clone_pulls_and_has_nothing_to_run(pushed: Clone, pulled: Clone) -> None:
    ran = pulled.stages_run(pulled.run("dvc", "repro").stdout)
    assert ran == []
    print(f"stages that ran after dvc pull && dvc repro in a clean clone: {len(ran)}")
    assert "up to date" in pulled.run("dvc", "status").stdout
    assert pulled.run("git", "status", "--porcelain").stdout == ""
    for name in (
        "data/ensemble/predictions.parquet",
        "submissions/submission.csv",
        "models/network/network.safetensors",
    ):
        assert (pulled.root / name).read_bytes() == (pushed.root / name).read_bytes()


def test_the_pulled_models_give_the_stored_predictions(pulled: Clone) -> None:
    data = pulled.root / "data"
    posts = read_table(data / "interim/posts.parquet", POSTS)
    ((key, rows),) = rows_of(read_table(data / "interim/splits.parquet", FOLDS), ["refit"])
    fold = load_fold(key, rows, posts, data / "features")
    features = fold.valid
    inputs = StackInputs.below(pulled.root)
    blocks = read_blocks(inputs.image, inputs.text, inputs.prototype)
    ensemble = json.loads((pulled.root / paths.ENSEMBLE_WEIGHTS).read_text(encoding="utf-8"))
    models = {
        name: StackModel.load(pulled.root / "models/stack" / name)
        for name in ensemble["weights"]
        if name != "text_model"
    }
    values = sum(
        ensemble["weights"][name] * model.predict_each(model.encoder.apply(features, blocks), fold.valid_at)
        for name, model in models.items()
    )
    stored = read_table(data / "ensemble/predictions.parquet", PREDICTIONS).filter(scheme="refit", model="stack")
    stored_texts = read_table(data / "text_model/predictions.parquet", MEMBER_PREDICTIONS).filter(scheme="refit")
    stored_texts = stored_texts.join(features.select("pid"), on="pid", how="right", maintain_order="right")
    texts = stored_texts["prediction"].to_numpy()
    text_model = TextModel.load(
        pulled.root / "models/text_model/model.safetensors",
        network_text_params(pulled.root / "params.yaml"),
    )
    np.testing.assert_allclose(text_model.predict(features, fold.valid_at), texts, rtol=0, atol=1e-5)
    assert stored.height == posts.filter(split="test").height > 0
    for seed, found in zip(stored["seed"].unique().sort(), values, strict=True):
        expected = stored.filter(seed=seed).join(features.select("pid"), on="pid", how="right", maintain_order="right")
        mean = found + ensemble["weights"]["text_model"] * (texts - ensemble["text_model_offset"])
        np.testing.assert_allclose(mean, expected["prediction"].to_numpy(), rtol=0, atol=1e-12)
    print(f"{stored.height} stored predictions of the test part come back from the pulled models")


def test_manifests_came_along_and_name_what_was_read(pulled: Clone) -> None:
    metrics = json.loads((pulled.root / "reports/metrics.json").read_text(encoding="utf-8"))
    manifests = {
        name: json.loads((pulled.root / name / "manifest.json").read_text(encoding="utf-8"))
        for name in ("models/prototypes", "models/network", "models/ensemble", "submissions")
    }
    revision = pulled.run("git", "log", "-1", "--format=%H", "--", "src", "stages", "configs").stdout.strip()
    for manifest in manifests.values():
        assert manifest["code"] == {"revision": revision, "modified": False}
    assert len({manifest["inputs"]["posts"] for manifest in manifests.values()}) == 1
    for scheme, scores in manifests["models/ensemble"]["metrics"].items():
        assert scores.items() <= metrics[scheme]["stack"].items()
    assert manifests["submissions"]["metrics"] == {"holdout": metrics["holdout"]["stack"]}


def test_an_artifact_by_name_and_version(pushed: Clone, tmp_path: Path) -> None:
    pushed.run("git", "tag", "-a", "stack@v1.0.0", "-m", "first")
    pushed.run("dvc", "artifacts", "get", ".", "stack", "--rev", "v1.0.0", "-o", str(tmp_path / "stack"))
    found, whole = (
        {path.name for path in folder.iterdir()} for folder in (tmp_path / "stack", pushed.root / "models/stack")
    )
    assert found == whole > {"manifest.json", "metadata"}
    code = "from dvc.repo import Repo; print(*Repo().artifacts.read()['dvc.yaml'])"
    assert set(pushed.run("python", "-c", code).stdout.split()) >= {"prototypes", "network", "stack", "submission"}


@pytest.mark.parametrize(
    ("bucket", "credentials", "message"),
    [
        (BUCKET, {}, "Unable to locate credentials"),
        (BUCKET, {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong"}, "Forbidden"),
        (BUCKET, {"AWS_SECRET_ACCESS_KEY": "wrong"}, "Forbidden"),
        ("elsewhere", None, "bucket does not exist"),
    ],
)
def test_what_a_refused_push_says(
    pushed: Clone, server: Server, bucket: str, credentials: dict[str, str] | None, message: str
) -> None:
    """Credentials without an id have the right id and a wrong secret; None: the right credentials."""
    if credentials is None:
        credentials = dict(server.credentials)
    elif len(credentials) == 1:
        credentials = {**server.credentials, **credentials}
    configure(pushed, server, bucket)
    try:
        done = pushed.run("dvc", "push", check=False, more=server.environment(**credentials))
    finally:
        pushed.run("git", "restore", ".dvc/config")
    assert done.returncode != 0
    assert message in done.stderr


def test_without_a_remote(clone: Clone) -> None:
    done = clone.run("dvc", "push", check=False)
    assert done.returncode != 0
    assert "no remote specified" in done.stderr
    assert "dvc remote add" in done.stderr
