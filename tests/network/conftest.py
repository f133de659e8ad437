from __future__ import annotations

from pathlib import Path

import pytest

from popularity.encoders.prompting import PromptTower, load_prompt_tower
from tests.encoders.tiny_encoders import save_bert, text_params


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random text encoder of type BERT."""
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tower(bert: Path) -> PromptTower:
    """Of type BERT, frozen, random."""
    return load_prompt_tower(text_params(weights=f"path:{bert}", max_tokens=12))
