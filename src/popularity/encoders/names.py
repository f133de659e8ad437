"""Section encoders of params.yaml: the entries of embed_image and embed_text that later stages use, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from popularity.core.config import Section

# Also the name of a folder and the end of a stage's name.
EncoderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# One name, or a list of different ones.
EncoderNames = EncoderName | Annotated[tuple[EncoderName, ...], Field(min_length=1)]


@dataclass(frozen=True)
class NetworkEncoders(Section):
    """The pair of the network; the text model fine-tunes its text encoder.

    DVC cannot look up the loader of a named entry, and the stages that run an encoder depend on its loader's file. So
    the loaders stand here once more.

    Args:
        image: an entry of embed_image.
        image_loader: the entry's loader.
        text: an entry of embed_text.
        text_loader: the entry's loader.
    """

    image: EncoderName
    image_loader: str
    text: EncoderName
    text_loader: str


@dataclass(frozen=True)
class StackEncoders(Section):
    """The encoders whose vectors are the blocks image and text of the stack.

    One encoder of a kind gives the block `text`; several give a block each, named `text.<encoder>`.

    Args:
        image: an entry of embed_image, or several.
        text: an entry of embed_text, or several.
    """

    image: EncoderNames
    text: EncoderNames


@dataclass(frozen=True)
class EncodersParams(Section):
    """Section encoders."""

    network: NetworkEncoders
    stack: StackEncoders


def as_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """The names that a key of encoders.stack gives, each once.

    Args:
        value: a name, or several.
    """
    return (value,) if isinstance(value, str) else tuple(dict.fromkeys(value))


def names_in_use(params: Mapping[str, Any], kind: str) -> list[str]:
    """The names of the encoders that network and stack use, each once.

    Args:
        params: content of params.yaml.
        kind: image or text.
    """
    used = params["encoders"]
    return list(dict.fromkeys(name for pair in ("network", "stack") for name in as_names(used[pair][kind])))


def models_in_use(params: Mapping[str, Any]) -> list[str]:
    """The models of the encoders that network and stack use, each once, images first.

    Args:
        params: content of params.yaml.
    """
    used = [params[f"embed_{kind}"][name] for kind in ("image", "text") for name in names_in_use(params, kind)]
    return list(dict.fromkeys(entry["model"] for entry in used))
