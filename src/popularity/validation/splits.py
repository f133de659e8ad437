"""Who is fitted on and who is scored, for every scheme; made once, then read by all later stages.

    time ->    |------------- before report -------------|-- report --|---- test part ----|
    report     |  fit, some users dropped                |   score    |
    matched    |  fit, some users dropped     |  score   |  dropped   |
               |  fit, some dropped |  score  |        dropped        |
               |  fit ...  | score  |             dropped             |
    user       |  five folds by user                     |  dropped   |
    random     |  five random folds                      |  dropped   |
    final      |  fit                                                 |       score       |

Dropped rows are neither fitted on, nor counted in any feature, nor scored. The cuts of `matched` are its folds, in
order of time; each scores the slice before the next one's and draws its own users.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field
from sklearn.model_selection import GroupKFold, KFold

from popularity.core.config import Section
from popularity.core.contracts import FOLDS, FoldKey
from popularity.core.errors import DataError

logger = logging.getLogger(__name__)

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class SplitParams(Section):
    seed: int
    holdout_fraction: Share
    forward_fraction: Share
    n_origins: Annotated[int, Field(ge=1)]
    n_folds: Annotated[int, Field(ge=2)]
    unseen_user_fraction: Share
    tolerance: Annotated[float, Field(gt=0, lt=0.5)]


def make_splits(posts: pl.DataFrame, params: SplitParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Roles of every post in every scheme (contract FOLDS), and what each scheme looks like.

    A training post has one row in each (scheme, fold); test posts occur in `final` alone.

    Raises:
        DataError: too few posts or users for the schemes.
    """
    posts = posts.select("pid", "uid", "split", "posted_at").sort("posted_at", "pid")
    train, test = (posts.filter(pl.col("split") == part) for part in ("train", "test"))
    if train["uid"].n_unique() < params.n_folds:
        raise DataError(
            f"{train['uid'].n_unique()} users in the training part",
            expected=f"at least split.n_folds = {params.n_folds}",
            fix="check dataset.root, or lower split.n_folds in params.yaml",
        )
    wanted, origin = _wanted_unseen_share(train, test, params)
    report_start = _cut(train, params.holdout_fraction)
    before_report = train.filter(pl.col("posted_at") < report_start)
    if before_report["posted_at"].n_unique() < 2 or before_report["uid"].n_unique() < params.n_folds:
        raise DataError(
            f"{before_report.height} posts before the report cut at {report_start}",
            expected="training posts spread over time, with more users than split.n_folds",
            fix="check the Postdate column, or lower split.holdout_fraction in params.yaml",
        )
    slices, fewer = _slices(before_report, report_start, params)
    parts: list[pl.DataFrame] = []
    summary: list[dict[str, Any]] = []

    def add(key: FoldKey, role: npt.NDArray[np.str_], pids: pl.Series, *, note: str) -> None:
        frame = pl.DataFrame({"pid": pids, "role": pl.Series(role.tolist(), dtype=pl.String)}).select(
            pl.lit(key.scheme).alias("scheme"),
            pl.lit(key.fold, pl.Int32).alias("fold"),
            "pid",
            "role",
        )
        parts.append(frame)
        summary.append({"scheme": key.scheme, "fold": key.fold, "note": note, **_describe(frame, posts)})

    def add_cut(key: FoldKey, start: Any, end: Any | None, *, later: int, note: str) -> None:
        # Trailing zeros seed alike: the last cut draws the users that it would draw if it were the only one.
        rng = np.random.default_rng([params.seed, FOLDS_SEED[key.scheme], 0, later])
        role, missed = _cut_roles(train, start, end, wanted=wanted, params=params, rng=rng)
        add(key, role, train["pid"], note="; ".join(filter(None, (note, missed))))

    add_cut(FoldKey("holdout", 0), report_start, None, later=0, note="")
    for fold, (start, end) in enumerate(slices):
        note = fewer if fold == 0 else ""
        add_cut(FoldKey("forward", fold), start, end, later=len(slices) - 1 - fold, note=note)
    for scheme in ("group", "random"):
        for fold, role in enumerate(_fold_roles(train, report_start, scheme, params)):
            add(FoldKey(scheme, fold), role, train["pid"], note="")
    everything = pl.concat([train, test])
    add(
        FoldKey("refit", 0),
        np.where(everything["split"].to_numpy() == "train", "train", "valid"),
        everything["pid"],
        note="" if test.height else "no test part: nothing to score",
    )
    report = {
        "wanted_unseen_post_share": round(wanted, 4),
        "wanted_from": origin,
        "tolerance": params.tolerance,
        "schemes": summary,
    }
    for row in summary:
        if row["note"]:
            logger.info("scheme %s: %s", row["scheme"], row["note"])
    return pl.concat(parts).sort(FOLDS.key), report


FOLDS_SEED = {"holdout": 1, "forward": 2, "group": 3, "random": 4}
MIN_TRAIN_FRACTION = 0.25  # share of the rows before a cut in time that is fitted on, however many users should go


def rows_of(splits: pl.DataFrame, schemes: list[str]) -> Iterator[tuple[FoldKey, pl.DataFrame]]:
    """Yields (key, rows (pid, role) without the dropped ones) of each fold, in order."""
    kept = splits.filter(pl.col("scheme").is_in(schemes) & (pl.col("role") != "excluded"))
    for (scheme, fold), rows in kept.sort(FOLDS.key).group_by("scheme", "fold", maintain_order=True):
        yield FoldKey(str(scheme), int(str(fold))), rows.select("pid", "role")


def _wanted_unseen_share(train: pl.DataFrame, test: pl.DataFrame, params: SplitParams) -> tuple[float, str]:
    """The share of scored posts that users without a training post should write."""
    if test.is_empty():
        return params.unseen_user_fraction, "split.unseen_user_fraction (no test part)"
    known = test["uid"].is_in(train["uid"].unique().to_list())
    return 1.0 - float(known.sum()) / test.height, "test part"


def _cut(rows: pl.DataFrame, share: float) -> Any:
    """The time from which the last `share` of `rows` (sorted by time) was posted.

    Ties are not parted; where times differ, the first posts lie before the cut.
    """
    times = rows["posted_at"]
    start, after_first = times[-max(1, round(share * rows.height))], times.filter(times > times[0])
    return start if after_first.is_empty() else max(start, after_first[0])


def _slices(before_report: pl.DataFrame, report_start: Any, params: SplitParams) -> tuple[list[tuple[Any, Any]], str]:
    """(start, end) of what each cut of `matched` scores, in order of time: the last `forward_fraction` of what is before
    the next one. The second value says so if there is no room for all."""
    slices: list[tuple[Any, Any]] = []
    rows, end = before_report, report_start
    while (
        len(slices) < params.n_origins and rows["posted_at"].n_unique() > 1 and rows["uid"].n_unique() >= params.n_folds
    ):
        start = _cut(rows, params.forward_fraction)
        slices.insert(0, (start, end))
        rows, end = rows.filter(pl.col("posted_at") < start), start
    missing = params.n_origins - len(slices)
    return (
        slices,
        f"too few posts or users for {missing} more of split.n_origins = {params.n_origins}" if missing else "",
    )


def _cut_roles(
    train: pl.DataFrame,
    start: Any,
    end: Any | None,
    *,
    wanted: float,
    params: SplitParams,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.str_], str]:
    """Roles (n,) for one cut in time, with users dropped from the fit rows to match the test part."""
    times = train["posted_at"]
    after = (times >= end).to_numpy() if end is not None else np.zeros(train.height, dtype=bool)
    score = (times >= start).to_numpy() & ~after
    fit = ~score & ~after
    uids = train["uid"].to_numpy()
    dropped_users, note = _users_to_drop(uids[fit], uids[score], wanted, params.tolerance, rng)
    dropped = after | (fit & train["uid"].is_in(dropped_users).to_numpy())
    return np.where(dropped, "excluded", np.where(score, "valid", "train")), note


def _users_to_drop(
    fit_uids: npt.NDArray[np.object_],
    score_uids: npt.NDArray[np.object_],
    wanted: float,
    tolerance: float,
    rng: np.random.Generator,
) -> tuple[list[str], str]:
    """Users whose fit posts go, so that about `wanted` of the scored posts are by unseen users.

    Users come in random order; one that would overshoot is passed over. When the users left are all too
    large, the one that ends nearest is taken. No user goes with whom less than MIN_TRAIN_FRACTION of the fit rows would
    be left. The second value says why the share was missed, if it was.
    """
    known = Counter(fit_uids.tolist())
    spare = len(fit_uids) * (1 - MIN_TRAIN_FRACTION)
    users, counts = np.unique(score_uids.astype(str), return_counts=True)
    seen = np.array([user in known for user in users], dtype=bool)
    total = len(score_uids)
    unseen = int(counts[~seen].sum())
    if unseen / total > wanted + tolerance:
        return [], f"{_reached(unseen / total)}, more than the {100 * wanted:.1f} % wanted: no user was dropped"
    dropped: list[str] = []
    candidates = rng.permutation(np.flatnonzero(seen))
    passed_over: list[int] = []
    for index in candidates:
        if unseen / total >= wanted - tolerance:
            break
        if known[users[index]] > spare:
            continue
        if (unseen + counts[index]) / total <= wanted + tolerance:
            unseen += int(counts[index])
            spare -= known[users[index]]
            dropped.append(str(users[index]))
        else:
            passed_over.append(int(index))
    passed_over = [index for index in passed_over if known[users[index]] <= spare]
    if unseen / total < wanted - tolerance and passed_over:
        nearest = min(passed_over, key=lambda index: (abs((unseen + counts[index]) / total - wanted), index))
        if abs((unseen + counts[nearest]) / total - wanted) < abs(unseen / total - wanted):
            unseen += int(counts[nearest])
            dropped.append(str(users[nearest]))
    reached = unseen / total
    if abs(reached - wanted) <= tolerance:
        return dropped, ""
    return dropped, f"{_reached(reached)}, as near to the {100 * wanted:.1f} % wanted as dropping whole users came"


def _reached(share: float) -> str:
    return f"{100 * share:.1f} % of its scored posts are by unseen users"


def _fold_roles(
    train: pl.DataFrame, report_start: Any, scheme: str, params: SplitParams
) -> Iterator[npt.NDArray[np.str_]]:
    """Roles (n,) for each fold of `user` or `random` over the rows before `report`."""
    before = np.flatnonzero((train["posted_at"] < report_start).to_numpy())
    state = int(np.random.default_rng([params.seed, FOLDS_SEED[scheme], 0]).integers(2**31))
    if scheme == "group":
        # Numbers in the order of the names: among names scikit-learn looks for every user in every row.
        groups = train["uid"].rank("dense").to_numpy()[before]
        folds = GroupKFold(params.n_folds, shuffle=True, random_state=state).split(before, groups=groups)
    else:
        folds = KFold(params.n_folds, shuffle=True, random_state=state).split(before)
    for _, scored in folds:
        role = np.full(train.height, "excluded", dtype="<U8")
        role[before] = "train"
        role[before[scored]] = "valid"
        yield role


def _describe(frame: pl.DataFrame, posts: pl.DataFrame) -> dict[str, Any]:
    """Counts of a scheme's rows, its time span and its share of scored posts by unseen users."""
    rows = frame.join(posts, on="pid", how="left", validate="1:1")
    fit, score = (rows.filter(pl.col("role") == role) for role in ("train", "valid"))
    unseen = (~score["uid"].is_in(fit["uid"].unique().to_list())).mean()
    return {
        "train": fit.height,
        "valid": score.height,
        "excluded": rows.height - fit.height - score.height,
        "train_users": fit["uid"].n_unique(),
        "valid_users": score["uid"].n_unique(),
        "unseen_post_share": None if unseen is None else round(float(str(unseen)), 4),
        "valid_from": str(score["posted_at"].min()) if score.height else None,
        "valid_to": str(score["posted_at"].max()) if score.height else None,
    }
