"""The run: time and memory of its stages, code and inputs of its artifacts, and the submission files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from popularity.core import paths
from popularity.core.atomic import sha256_of
from popularity.core.manifest import MANIFEST
from popularity.encoders.names import names_in_use
from popularity.report.document import Bar, Bars, Element, Section, Table, Text
from popularity.report.run_folder import RunFolder
from popularity.report.wording import NONE

KINDS = ("image", "text")
RESOURCES = tuple(path for stage, path in paths.RESOURCES.items() if stage != "report")
MANIFESTS = (
    paths.PROTOTYPE_MANIFEST,
    paths.NETWORK_MANIFEST,
    paths.TUNING_MANIFEST,
    paths.STACK_MANIFEST,
    paths.ENSEMBLE_MANIFEST,
)
READS = (*RESOURCES, *MANIFESTS, paths.SUBMISSIONS)


def build(run: RunFolder) -> Section:
    """The section."""
    files = [[name, digest] for name, digest in submission_digests(run).items()]
    return Section(
        "run",
        "Run and submission",
        [
            *_costs(_records(run)),
            *_origins({path: run.json(path) for path in (*MANIFESTS, paths.SUBMISSION_MANIFEST)}),
            Table("Submission files", ["file", "sha256"], files, names=2),
        ],
    )


def _records(run: RunFolder) -> list[Mapping[str, Any]]:
    """Time and memory of the stages before the report."""
    used = [paths.encoder_resources(kind, name) for kind in KINDS for name in names_in_use(run.params, kind)]
    own = {run.path(path) for path in RESOURCES}
    further = [path for path in used if run.path(path) not in own and run.has(path)]  # of the stack's encoders
    return [run.json(path) for path in (*RESOURCES, *further)]


def submission_digests(run: RunFolder) -> dict[str, str]:
    """SHA-256 of each submission file, by name."""
    files = sorted((run.folder / paths.SUBMISSIONS).iterdir())
    return {file.name: sha256_of(file) for file in files if file.name != MANIFEST}


def _costs(records: Sequence[Mapping[str, Any]]) -> list[Element]:
    longest = max(record["seconds"] for record in records) or 1
    total = sum(record["seconds"] for record in records)
    bars = []
    for record in records:
        child = f" + {record['largest_child_mib']:,}" if record["largest_child_mib"] else ""
        value = f"{record['seconds']:,.1f} s, {record['peak_mib']:,}{child} MiB"
        bars.append(Bar(record["stage"], [record["seconds"] / longest], value))
    text = (
        f"The stages before this report took {total:,.0f} s in all, each at its last run. Memory is the peak of the "
        "stage's process, plus that of its largest child process."
    )
    return [Text(text), Bars("Time and peak memory", bars)]


def _origins(manifests: Mapping[str, Mapping[str, Any]]) -> list[Element]:
    """Code revision and inputs of each artifact."""
    rows = []
    for path, manifest in manifests.items():
        code = manifest["code"]
        modified = {True: "yes", False: "no", None: NONE}[code["modified"]]
        inputs = ", ".join(f"{source} {mark[:8]}" for source, mark in sorted(manifest["inputs"].items()))
        rows.append([path.removesuffix(f"/{MANIFEST}"), (code["revision"] or NONE)[:12], modified, inputs or NONE])
    header = ["artifact", "code revision", "uncommitted changes", "inputs (first digits of their fingerprints)"]
    elements: list[Element] = [Table("Code and inputs of the artifacts", header, rows, names=4)]
    libraries = next(iter(manifests.values()))["libraries"]
    if libraries:
        versions = ", ".join(f"{name} {version or NONE}" for name, version in sorted(libraries.items()))
        elements.append(Text(f"Libraries: {versions}."))
    return elements
