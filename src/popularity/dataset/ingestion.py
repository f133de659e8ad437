"""Raw files in the official layout to the tables posts, users and quarantine, and a summary of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from popularity.core.contracts import LEVELS, POSTS, QUARANTINE, USERS, check_table, class_key
from popularity.core.errors import DataError
from popularity.dataset.layout import SplitFiles, find_splits
from popularity.dataset.parsing import EARLIEST, LATEST, MISSING, Parser, Quarantine, Rows, from_seconds, integers
from popularity.dataset.reading import JsonTable, read_lines
from popularity.dataset.summary import Notes, summarise
from popularity.dataset.users import USER_FIELDS, UserVectors, holds_vectors, user_columns

log = logging.getLogger(__name__)

FINEST_GEO_ACCURACY = 16
LAST_POST = "last_post"  # dataset.collected_at: the counts were read when the last post was made

_IDS = {"uid": ("Uid",), "pid": ("Pid",)}
_FIELDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "category": {name: (name,) for name in ("Category", "Subcategory", "Concept")},
    "text": {name: (name,) for name in ("Title", "Mediatype", "Alltags")},
    "temporalspatial": {name: (name,) for name in ("Postdate", "Latitude", "Longitude", "Geoaccuracy")},
    "additional": {name: (name,) for name in ("Pathalias", "Ispublic", "Mediastatus")},
}


@dataclass(frozen=True)
class Ingested:
    """A data set as tables that keep the contracts POSTS, USERS and QUARANTINE, and a summary of what was found."""

    posts: pl.DataFrame
    users: pl.DataFrame
    quarantine: pl.DataFrame
    summary: dict[str, Any]


def ingest(root: Path, collected_at: datetime | None = None) -> Ingested:
    """The data set under `root`, checked.

    A value that is only implausible becomes null (a date becomes the median of its split) and gets a row in
    `quarantine`; no post is lost. The test labels are never opened.

    Args:
        root: of the data set.
        collected_at: when the counts of all posts were read, UTC; None: not known.

    Raises:
        DataError: unknown layout, a missing file, broken JSON, files whose rows are not of the same posts,
            a duplicate pid, a label that is no finite number, or a Postdate that is no integer.
    """
    splits = find_splits(root)
    quarantine, notes, users = Quarantine(), Notes(), UserVectors()
    posts = []
    files = sum(len(source.files) for source in splits)
    with tqdm(total=files, desc="ingest", unit="file") as progress:
        for source in splits:
            posts.append(_read_split(source, quarantine, notes, users, progress))
    collected = pl.lit(collected_at).cast(POSTS.columns["collected_at"].dtype)
    table = pl.concat(posts).sort(POSTS.key).with_columns(collected_at=collected).select(list(POSTS.columns))
    _refuse_shared_pids(table, splits)
    user_table, differing = users.table()
    entries = quarantine.table()
    for frame, contract in ((table, POSTS), (user_table, USERS), (entries, QUARANTINE)):
        check_table(frame, contract)
    if len(splits) == 1:
        log.info("%s has no test split: posts hold the training split alone, and no submission can be made", root)
    if len(entries):
        log.info("%d values could not be used as published; see the summary and the quarantine table", len(entries))
    notes.users_with_differing_vectors = differing
    return Ingested(table, user_table, entries, summarise(root, splits, table, entries, notes))


def collection_date(text: str) -> datetime | None:
    """The date of `dataset.collected_at`, UTC; None for `last_post`.

    Raises:
        DataError: it is neither.
    """
    if text == LAST_POST:
        return None
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"dataset.collected_at is {text!r}",
            expected=f"{LAST_POST}, or a date such as 2016-05-01 or 2016-05-01T12:00 (UTC)",
            fix="set dataset.collected_at in params.yaml",
        ) from None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def _read_split(
    source: SplitFiles, quarantine: Quarantine, notes: Notes, users: UserVectors, progress: tqdm[Any]
) -> pl.DataFrame:
    """The posts of one split in file order. Each file is parsed to typed columns before the next is opened."""
    reader = _SplitReader(source, quarantine, notes)
    columns: dict[str, pl.Series] = {}
    for role, read in (
        ("category", reader.categories),
        ("text", reader.texts),
        ("temporalspatial", reader.times_and_places),
        ("additional", reader.additional),
        ("images", reader.image_paths),
        ("label", reader.labels),
        ("user", lambda: reader.user_columns(users)),
    ):
        progress.set_postfix_str(source.files[role].name if role in source.files else "")
        columns |= read()
        progress.update(role in source.files)
    frame = pl.DataFrame(columns).with_columns(
        pl.lit(source.split).alias("split"), pl.int_range(pl.len(), dtype=pl.Int64).alias("source_index")
    )
    return frame.select([name for name in POSTS.columns if name in frame.columns])


class _SplitReader:
    """Reads the files of one split; the category file comes first, and all others must follow its rows."""

    def __init__(self, source: SplitFiles, quarantine: Quarantine, notes: Notes) -> None:
        self.source, self.quarantine, self.notes = source, quarantine, notes
        self.uids = self.pids = pl.Series(dtype=pl.String)

    def categories(self) -> dict[str, pl.Series]:
        frame = self._table("category")
        path = self.source.files["category"]
        for name in _IDS:
            _refuse_unusable_ids(frame[name], _IDS[name][0], path)
        self.uids, self.pids = frame["uid"], frame["pid"]
        if self.pids.is_duplicated().any():
            pid = self.pids.filter(self.pids.is_duplicated())[0]
            first, second = (self.pids == pid).arg_true()[:2]
            raise DataError(
                f"Pid {pid} occurs again; its first row is {first}", file=path, row=second, expected="each Pid once"
            )
        parser = self._parser("category")
        names = frame.select("Category", "Subcategory", "Concept")
        names = names.with_columns(parser.text(column.name, column) for column in names)
        for level, column in zip(LEVELS, names, strict=True):
            self.notes.empty_class_names[level] += int((column == "").sum())
        # Paths repeat: each is joined once.
        paths = names.unique(maintain_order=True)
        keys = {level: [class_key(*path[: depth + 1]) for path in paths.rows()] for depth, level in enumerate(LEVELS)}
        joined = names.join(
            paths.with_columns(pl.Series(level, values, dtype=pl.String) for level, values in keys.items()),
            on=names.columns,
            how="left",
            maintain_order="left",
            validate="m:1",
        )
        return {"pid": self.pids, "uid": self.uids, **{level: joined[level] for level in LEVELS}}

    def texts(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("text"), self._parser("text")
        columns = {"title": "Title", "tags": "Alltags", "media_type": "Mediatype"}
        return {name: parser.text(source, frame[source]) for name, source in columns.items()}

    def times_and_places(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("temporalspatial"), self._parser("temporalspatial")
        accuracy = parser.integer("Geoaccuracy", frame["Geoaccuracy"], 0, FINEST_GEO_ACCURACY, "set to 0")
        return {
            "posted_at": self._post_dates(frame["Postdate"], parser),
            "latitude": parser.number("Latitude", frame["Latitude"], -90, 90),
            "longitude": parser.number("Longitude", frame["Longitude"], -180, 180),
            "geo_accuracy": accuracy.fill_null(0).cast(pl.Int8),
        }

    def _post_dates(self, texts: pl.Series, parser: Parser) -> pl.Series:
        path = self.source.files["temporalspatial"]
        seconds = integers(texts)
        if seconds.null_count():
            row = int(seconds.is_null().arg_true()[0])
            raise DataError(
                f"Postdate {texts[row]!r} is not an integer", file=path, row=row, expected="unix time in seconds"
            )
        low, high = int(EARLIEST.timestamp()), int(LATEST.timestamp())
        plausible = seconds.is_between(low, high)
        if not plausible.any():
            raise DataError(
                f"no Postdate lies between 1970 and 2100; the first is {texts[0]}",
                file=path,
                row=0,
                expected="unix time in seconds (not milliseconds)",
            )
        valid = seconds.filter(plausible).sort()
        median = int(valid[len(valid) // 2])
        action = f"set to the median date of the {self.source.split} split"
        parser.quarantine.add(parser.rows, "Postdate", texts, ~plausible, "outside 1970 to 2100", action)
        return from_seconds(seconds.set(~plausible, median))

    def additional(self) -> dict[str, pl.Series]:
        frame, parser = self._aligned_table("additional"), self._parser("additional")
        alias = frame["Pathalias"].str.strip_chars()
        return {
            "has_path_alias": ~alias.is_in(MISSING).fill_null(True),
            "is_public": parser.flag("Ispublic", frame["Ispublic"]),
            "media_status": parser.text("Mediastatus", frame["Mediastatus"]),
        }

    def image_paths(self) -> dict[str, pl.Series]:
        paths = self._lines("images")
        frame = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        expected = frame.select(pl.format(f"{self.source.split}/{{}}/{{}}.jpg", "uid", "pid")).to_series()
        _refuse_difference(paths, expected, "image path", self.source.files["images"], self.source.files["category"])
        return {"image_path": expected}

    def labels(self) -> dict[str, pl.Series]:
        if "label" not in self.source.files:
            return {"label": pl.repeat(None, len(self.pids), dtype=pl.Float64, eager=True)}
        texts = self._lines("label")
        labels = texts.cast(pl.Float64, strict=False)
        unusable = ~labels.is_finite().fill_null(False)
        if unusable.any():
            row = int(unusable.arg_true()[0])
            raise DataError(
                f"label {texts[row]!r} is no finite number",
                file=self.source.files["label"],
                row=row,
                expected="one number a line: log2(views + 1)",
            )
        return {"label": labels}

    def user_columns(self, users: UserVectors) -> dict[str, pl.Series]:
        path = self.source.files["user"]
        table = JsonTable(path, {**_IDS, **USER_FIELDS}, required=())
        ids = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        frames, start, vectors = [], 0, False
        for chunk in table.frames():
            if table.rows > len(ids):
                continue  # counted to the end for the message
            owners = ids[start : table.rows]
            _refuse_other_ids(chunk, owners, path, self.source.files["category"], start)
            vectors = vectors or holds_vectors(chunk)
            parser = Parser(Rows(path.name, start, owners["pid"]), self.quarantine)
            frames.append(user_columns(chunk, parser, vectors))
            users.add(owners["uid"], chunk, parser, vectors)
            start = table.rows
        self._note("user", table, f"{table.layout}, " + ("vectors (form A)" if vectors else "texts (form B)"))
        self._refuse_row_count(table.rows, path)
        if set(USER_FIELDS) <= set(table.absent):
            raise DataError(
                "no row has a field of the user file",
                file=path,
                expected=f"the fields {', '.join(' or '.join(names) for names in USER_FIELDS.values())}",
            )
        return {column.name: column for column in pl.concat(frames)}

    def _table(self, role: str) -> pl.DataFrame:
        table = JsonTable(self.source.files[role], {**_IDS, **_FIELDS[role]}, required=[*_IDS, *_FIELDS[role]])
        frame = table.read()
        self._note(role, table, table.layout)
        return frame

    def _aligned_table(self, role: str) -> pl.DataFrame:
        frame, path = self._table(role), self.source.files[role]
        self._refuse_row_count(len(frame), path, frame["pid"])
        ids = pl.DataFrame({"uid": self.uids, "pid": self.pids})
        _refuse_other_ids(frame, ids, path, self.source.files["category"], 0)
        return frame

    def _lines(self, role: str) -> pl.Series:
        path = self.source.files[role]
        lines = read_lines(path)
        self.notes.files[str(path)] = {"role": role, "layout": "lines", "rows": len(lines)}
        self._refuse_row_count(len(lines), path)
        return lines

    def _parser(self, role: str) -> Parser:
        return Parser(Rows(self.source.files[role].name, 0, self.pids), self.quarantine)

    def _note(self, role: str, table: JsonTable, layout: str) -> None:
        self.notes.files[str(table.path)] = {
            "role": role,
            "layout": layout,
            "rows": table.rows,
            "ignored_fields": table.unknown,
            "absent_fields": [name for name in table.absent if name not in _IDS],
        }
        if table.unknown:
            log.info("%s: ignored the unknown fields %s", table.path, ", ".join(table.unknown))

    def _refuse_row_count(self, rows: int, path: Path, pids: pl.Series | None = None) -> None:
        """`pids`: those of the file, if it has any; they show which row was lost or added."""
        if rows == len(self.pids):
            return
        row = shared = min(rows, len(self.pids))
        if pids is not None:
            differing = pids[:shared].ne_missing(self.pids[:shared]).arg_true()
            row = int(differing[0]) if len(differing) else shared
        raise DataError(
            f"{rows} rows, but {self.source.files['category'].name} has {len(self.pids)}; this row differs first",
            file=path,
            row=row,
            expected=f"{len(self.pids)} rows, in the same order",
            fix="compare both files with the published ones and repair the incomplete one",
        )


def _refuse_unusable_ids(ids: pl.Series, name: str, path: Path) -> None:
    """Ids name folders and files: an empty one, or one that could leave its folder, is refused."""
    usable = (ids.str.contains(r"^[^/\x00\r\n]+$") & ~ids.is_in([".", ".."])).fill_null(False)
    if not usable.all():
        row = int((~usable).arg_true()[0])
        expected = f"a {name} of at least one character, without '/' and line breaks"
        raise DataError(f"{name} {ids[row]!r} cannot be used", file=path, row=row, expected=expected)


def _refuse_other_ids(frame: pl.DataFrame, ids: pl.DataFrame, path: Path, reference: Path, start: int) -> None:
    """Uid and Pid of `frame`, where it has them, must be those of the category file."""
    for name, (published,) in _IDS.items():
        if frame[name].null_count() < len(frame):
            _refuse_difference(frame[name], ids[name], published, path, reference, start)


def _refuse_difference(
    found: pl.Series, expected: pl.Series, what: str, path: Path, reference: Path, start: int = 0
) -> None:
    differing = found.ne_missing(expected)
    if differing.any():
        row = int(differing.arg_true()[0])
        raise DataError(
            f"{what} is {found[row]!r}",
            file=path,
            row=start + row,
            expected=f"{expected[row]!r}, as in the same row of {reference.name}",
            fix="the files of a split list the same posts in one order: find the row that was added, lost or moved",
        )


def _refuse_shared_pids(posts: pl.DataFrame, splits: Sequence[SplitFiles]) -> None:
    shared = posts.filter(posts["pid"].is_duplicated())
    if len(shared):
        test, train = (shared.filter(split=split).row(0, named=True) for split in ("test", "train"))
        raise DataError(
            f"Pid {test['pid']} is also row {train['source_index']} of the training split",
            file=splits[-1].files["category"],
            row=test["source_index"],
            expected="no post in both splits",
        )
