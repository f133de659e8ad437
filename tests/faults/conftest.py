from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders.tiny_encoders import save_bert
from tests.inference.small_world import World, make_world


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def world(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A folder with all that embed_posts reads."""
    monkeypatch.setenv("POPULARITY_WORKERS", "0")
    return make_world(tmp_path, bert)
