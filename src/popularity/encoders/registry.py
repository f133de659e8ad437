"""The registry of encoders. A new encoder is one file in this folder and one line, `register_encoder(...)`, at its end.

A key `loader` of params.yaml (sections embed_image and embed_text) names an encoder. The name is that of its file,
which is imported when the encoder is first needed; dvc.yaml takes the file from the same key, so that a stage depends
on the encoder that it uses and on no other. Code outside this folder may register encoders too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from popularity.core.errors import ConfigError

Kind = Literal["image", "text"]
Load = Callable[[Path, Any], nn.Module]  # see register_encoder


@dataclass(frozen=True)
class PromptReading:
    """How a text tower reads raw token embeddings, some of them soft prompts.

    Args:
        pooling: the pooled vector is the masked mean (L2-normalised), the end token, or the last position.
        context_deviation: standard deviation of a new context vector; None for that of the token table.
        outputs: (model, raw token embeddings (n, l, e), mask (n, l) of used positions) -> token vectors (n, l, d).
    """

    pooling: Literal["mean", "end", "last"]
    context_deviation: float | None
    outputs: Callable[[Any, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class RegisteredEncoder:
    """An entry of the registry; see `register_encoder`."""

    name: str
    load: Load
    prompt: PromptReading | None
    fixed_length: bool


_ENCODERS: dict[str, RegisteredEncoder] = {}


def register_encoder(name: str, load: Load, *, prompt: PromptReading | None = None, fixed_length: bool = False) -> None:
    """Adds an encoder to the registry.

    Args:
        name: value of the key `loader` of params.yaml; for an encoder of this folder the name of its file. It ends in
            _image or _text; before that end the two encoders of a dual model have the same name.
        load: (location of the weights, entry of embed_image or embed_text) -> ImageEncoder or TextEncoder, on the CPU.
        prompt: of a text encoder: how it reads soft prompts; None for one that does not.
        fixed_length: of a text encoder: every text is padded to its full length, because it attends to the padding.

    Raises:
        ValueError: the name has another end, or another encoder has the name.
    """
    if not name.endswith(tuple(f"_{kind}" for kind in get_args(Kind))):
        raise ValueError(f"the name of an encoder ends in _image or _text, found {name!r}")
    encoder = RegisteredEncoder(name, load, prompt, fixed_length)
    if _ENCODERS.get(name, encoder) != encoder:
        raise ValueError(f"there is an encoder {name!r} already")
    _ENCODERS[name] = encoder


def find_encoder(name: str, kind: Kind) -> RegisteredEncoder:
    """The encoder of that name; its file in this folder is imported if nothing registered it before.

    Args:
        name: as registered.
        kind: what it reads: images or texts.

    Raises:
        ConfigError: there is no encoder of that name and kind.
    """
    files = encoder_files(kind)
    if name not in _ENCODERS and name in files:
        import_module(f"{__package__}.{name}")
    known = sorted({*files, *(each for each in _ENCODERS if each.endswith(f"_{kind}"))})
    if name not in known:
        raise ConfigError(
            f"embed_{kind}.loader: no {kind} encoder {name!r}; there are {', '.join(known)}. "
            "A new one is a file in src/popularity/encoders that calls register_encoder"
        )
    return _ENCODERS[name]


def encoder_files(kind: Kind) -> list[str]:
    """Names of the encoders of that kind that have a file in this folder, in alphabetical order."""
    return sorted(path.stem for path in Path(__file__).parent.glob(f"*_{kind}.py"))
