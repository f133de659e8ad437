"""What is found beside the images that posts name, and what the summary of stage index_images says to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from popularity.images.names import Match

EXAMPLES = 10  # names shown for each kind of fault


@dataclass
class Tally:
    """A count, with the names of the first few cases."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(printable(name))


@dataclass
class Findings:
    """What was found beside the expected images, and what was read in another way than named."""

    replaced: Tally = field(default_factory=Tally)  # an earlier copy of the same name: tar extracts the last
    not_a_file: Tally = field(default_factory=Tally)  # links that lead to no picture, devices, pipes, sparse files
    unsafe_name: Tally = field(default_factory=Tally)  # absolute, or with '..'
    unexpected: Tally = field(default_factory=Tally)
    of_systems: Tally = field(default_factory=Tally)  # __MACOSX, ._name, .DS_Store
    leads_out: Tally = field(default_factory=Tally)  # links from a folder of images to somewhere else
    links: int = 0  # images that are links within their shard
    other_suffix: Tally = field(default_factory=Tally)  # images with another suffix than the posts name
    prefixes: Counter[str] = field(default_factory=Counter)  # folder before the expected names
    formats: Counter[str] = field(default_factory=Counter)  # of files that are no readable image
    damaged_shards: dict[str, str] = field(default_factory=dict)  # shard -> fault
    shards: dict[str, int] = field(default_factory=dict)  # shard -> number of images used
    further: dict[str, int] = field(default_factory=dict)  # further pictures of posts: used, unusable

    def note(self, match: Match) -> None:
        """Notes how the name of an image differs from the named one."""
        if match.prefix:
            self.prefixes[match.prefix] += 1
        if not match.exact:
            self.other_suffix.add(match.path)


def printable(name: str) -> str:
    """The name without lone surrogates, which stand for bytes that are no UTF-8 and cannot be written as JSON."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_lines(summary: Mapping[str, Any]) -> list[str]:
    """What a summary of `index_images` says, as lines for people."""
    lines = []
    for split, counts in sorted(summary["statuses"].items(), reverse=True):  # train, test
        nothing = summary["no_picture"][split]
        extra = f"; {nothing} more posts name no picture" if nothing else ""
        lines.append(f"images of {split}: {counts['ok']} of {sum(counts.values()) - nothing} can be used{extra}")
    for status, paths in summary["examples"].items():
        if paths:
            count = sum(counts[status] for counts in summary["statuses"].values())
            count -= sum(summary["no_picture"].values()) if status == "missing" else 0
            lines.append(f"  {count} {status}: {', '.join(paths[:3])}{', ...' if count > 3 else ''}")
    if summary["unreadable_formats"]:
        found = ", ".join(f"{count} are {name}" for name, count in summary["unreadable_formats"].items())
        lines.append(f"  of the unreadable, {found}")
    lines += [f"  {shard} is {fault}" for shard, fault in summary["damaged_shards"].items()]
    lines += [f"  {count} members lie below {prefix}" for prefix, count in summary["prefixes"].items()]
    if summary["links"]:
        lines.append(f"  {summary['links']} images are links within their shard")
    if counts := summary["further_pictures"]:
        lines.append(f"  {counts['used']} further pictures are averaged, {counts['unusable']} cannot be used")
    if summary["other_suffix"]["count"]:
        lines.append(f"  {_tally_text(summary['other_suffix'])} with another suffix than the posts name")
    for name, tally in summary["ignored_members"].items():
        if tally["count"]:
            lines.append(f"  {_tally_text(tally)}: {_IGNORED[name]}")
    return lines


_IGNORED = {
    "replaced": "replaced by a later copy",
    "not_a_file": "neither a file nor a link to one in the shard, left out",
    "unsafe_name": "an absolute name or one with '..', left out",
    "unexpected": "of no post, left out",
    "of_systems": "left by macOS or a file manager",
    "leads_out": "a link out of the data set",
}


def _tally_text(tally: Mapping[str, Any]) -> str:
    more = ", ..." if tally["count"] > 2 else ""
    return f"{tally['count']} ({', '.join(tally['examples'][:2])}{more})"
