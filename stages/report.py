r"""Writes the report that a person reads: one HTML page that loads no other file, and a model card.

Reads what the other stages wrote below the project folder, and images of some posts. A section of the page appears if
the files that it reads are there.

    python -m stages.report --folder . --root data/demo --html reports/report.html --card reports/model_card.md \
        --resources reports/resources/report.json
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from popularity.core.atomic import write_text
from popularity.core.stage import record_resources, run
from popularity.report.document import render
from popularity.report.model_card import model_card
from popularity.report.page import build_page
from popularity.report.run_folder import RunFolder

LARGE = 10_000_000  # bytes

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="project folder, which holds params.yaml")
    parser.add_argument("--root", type=Path, required=True, help="data set")
    for name in ("html", "card", "resources"):
        parser.add_argument(f"--{name}", type=Path, required=True, help="output")
    args = parser.parse_args(argv)
    with record_resources("report", args.resources), RunFolder(args.folder, args.root) as folder:
        write_text(args.html, render(build_page(folder)))
        size = args.html.stat().st_size
        if size > LARGE:
            logger.warning(
                "%s: %.0f MB, slow to open and to send; lower report.thumbnail, gallery_classes or worst_posts",
                args.html,
                size / 1e6,
            )
        write_text(args.card, model_card(folder))


if __name__ == "__main__":
    run(main)
