"""Text towers from folders that transformers or sentence-transformers wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from popularity.encoders.sources import EncoderParams
from popularity.encoders.text import Outputs, TextEncoder, count_positions
from popularity.encoders.transformers_loading import load_tower, require_model_type


@dataclass(frozen=True)
class TextTower:
    """A text tower of transformers and how its vectors are read.

    Args:
        model_types: as config.json names them.
        class_name: the class of transformers that the folder holds.
        outputs: (model, input_ids (n, l), attention_mask (n, l)) -> pooled (n, d) and token vectors (n, l, d).
        pooling: description of the pooled vector.
        without: submodule that is not needed, such as the image tower of a dual encoder.
        optional: prefixes of tensors that may be missing because nothing uses them.
    """

    model_types: tuple[str, ...]
    class_name: str
    outputs: Outputs
    pooling: str
    without: str = ""
    optional: tuple[str, ...] = ()

    def load(self, folder: Path, params: EncoderParams) -> TextEncoder:
        """The encoder, on the CPU.

        Args:
            folder: config.json and safetensors.
            params: an entry of embed_text.

        Raises:
            MissingWeightsError: the folder lacks tensors.
            ConfigError: it holds another type of model.
        """
        del params
        require_model_type(folder, self.model_types)
        tower = load_tower(self.class_name, folder, without=self.without, optional=self.optional)
        return TextEncoder(tower, self.outputs, self.pooling, count_positions(tower))
