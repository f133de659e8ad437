from __future__ import annotations

from pathlib import Path

import pytest

from tests.encoders.tiny_encoders import save_bert


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random tower of type BERT."""
    return save_bert(tmp_path_factory.mktemp("bert"))
