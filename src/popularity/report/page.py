"""The page: its head, then the sections in the order in which they are read.

A section appears if every file that it reads is there and has something to show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from popularity.report import head
from popularity.report.document import Page, Section
from popularity.report.run_folder import RunFolder
from popularity.report.sections import (
    data,
    errors,
    importance,
    intervals,
    network,
    prototypes,
    provenance,
    scores,
    splits,
    tuning,
)


@dataclass(frozen=True)
class SectionBuilder:
    """A section that may appear.

    Args:
        reads: files and folders of the run, as named in `popularity.core.paths`.
        build: the section; None if the files hold nothing to show.
    """

    reads: tuple[str, ...]
    build: Callable[[RunFolder], Section | None]


SECTIONS = (
    SectionBuilder(scores.READS, scores.build),
    SectionBuilder(splits.READS, splits.build),
    SectionBuilder(errors.READS, errors.build),
    SectionBuilder(intervals.READS, intervals.build),
    SectionBuilder(prototypes.READS, prototypes.build),
    SectionBuilder(network.READS, network.build),
    SectionBuilder(importance.READS, importance.build),
    SectionBuilder(tuning.READS, tuning.build),
    SectionBuilder(data.READS, data.build),
    SectionBuilder(provenance.READS, provenance.build),
)


def build_page(run: RunFolder) -> Page:
    """The report of a run."""
    built = [section.build(run) for section in SECTIONS if run.has(*section.reads)]
    return Page(
        title=f"Popularity of posts: {run.dataset_name}",
        summary=head.summary(run),
        tiles=head.tiles(run),
        properties=head.properties(run),
        sections=[section for section in built if section is not None],
    )
