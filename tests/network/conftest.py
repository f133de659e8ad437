from __future__ import annotations

import pytest

from popularity.encoders.prompting import PromptTower, load_prompt_tower
from tests.encoders.tiny_encoders import save_bert, text_params


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> PromptTower:
    """Of type BERT, frozen, random."""
    folder = save_bert(tmp_path_factory.mktemp("bert"))
    return load_prompt_tower(text_params(weights=f"path:{folder}", max_tokens=12))
