r"""Writes the report that a person reads: one HTML page that needs nothing beside itself, and a model card.

Reads what every other stage wrote, and pictures of some posts below the root of the data set; what is missing is said
in its section. Writes report.html and model_card.md.

    dvc repro report    # the flags, one a file, are in dvc.yaml
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from popularity.config import PARAMS_FILE, load_params
from popularity.files import write_text
from popularity.images import IndexImagesParams
from popularity.report.card import model_card
from popularity.report.document import render
from popularity.report.inputs import Sources, read_inputs
from popularity.report.page import build_page
from popularity.report.pictures import Thumbnails
from popularity.stage import measured, run

LARGE = 10_000_000  # bytes

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    for name in (field.name for field in fields(Sources) if field.name not in ("params", "costs")):
        parser.add_argument(f"--{name}", type=Path, required=True, help="input")
    parser.add_argument("--costs", type=Path, nargs="+", required=True, help="records of the other stages")
    for name in ("html", "card", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="output")
    args = vars(parser.parse_args(argv))
    html, card, resources = (args.pop(name) for name in ("html", "card", "resources"))
    sources = Sources(**{**args, "costs": tuple(args["costs"])})
    max_pixels = load_params("index_images", IndexImagesParams, sources.params).max_pixels
    with measured("report", resources):
        inputs = read_inputs(sources)
        with Thumbnails(sources.root, inputs.images, inputs.shown.thumbnail, max_pixels) as pictures:
            write_text(html, render(build_page(inputs, pictures)))
        if html.stat().st_size > LARGE:
            logger.warning(
                "%s: %.0f MB, slow to open and to send; lower report.thumbnail, gallery_classes or worst_posts",
                html, html.stat().st_size / 1e6,
            )  # fmt: skip
        write_text(card, model_card(inputs))


if __name__ == "__main__":
    run(main)
