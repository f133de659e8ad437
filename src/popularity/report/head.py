"""The head of the page and of the model card: scores and properties of the run."""

from __future__ import annotations

from popularity.core import paths
from popularity.core.contracts import HOLDOUT, MAIN_MODEL
from popularity.encoders.names import as_names
from popularity.evaluation.promise import TEST, promise_sentences
from popularity.evaluation.scores import MODELS
from popularity.report.document import Tile
from popularity.report.run_folder import RunFolder
from popularity.report.score_cells import Metrics, by_metric, differences, overall, verdict
from popularity.report.wording import counted, estimate, listed, number, percent

READS = (
    paths.SCORES,
    paths.COVERAGE,
    paths.PROMISE,
    paths.POSTS,
    paths.ENSEMBLE_PREDICTIONS,
    paths.INGEST_SUMMARY,
    paths.SPLIT_SUMMARY,
    paths.PROTOTYPE_CLASSES,
    paths.PROTOTYPE_FIELDS,
    paths.STACK_MANIFEST,
    paths.ENSEMBLE_WEIGHTS,
)
MODALITIES = {"visual": "image", "text": "text"}  # of the prototypes -> of the encoders
NO_SCORE = "This run has no score on posts that were kept out of every choice."
NOMINAL = 0.8  # coverage of the interval in the tiles


def summary(run: RunFolder) -> str:
    """The scores of scheme HOLDOUT and the comparison with the baselines, in sentences."""
    found = _metrics(run)
    if MAIN_MODEL not in found:
        return NO_SCORE
    src, mae = (found[MAIN_MODEL][metric] for metric in ("src", "mae"))
    sentence = (
        f"On the validation posts of scheme {HOLDOUT}, on which no choice was made, the {MAIN_MODEL} reaches SRC "
        f"{estimate(src['value'], src['low'], src['high'])} and MAE {estimate(mae['value'], mae['low'], mae['high'])} "
        f"({counted(src['posts'], 'post')} by {counted(src['users'], 'user')})."
    )
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": []}
    own = differences(run.scores).filter(scheme=HOLDOUT, model=MAIN_MODEL, metric="mae")
    for row in own.iter_rows(named=True):
        difference = estimate(row["value"], row["low"], row["high"], sign=True)
        groups.setdefault(verdict(row), []).append(f"{row['minus']} ({difference})")
    words = {"better": "lower than that of", "worse": "higher than that of"}
    words["no clear difference"] = "not clearly different from that of"
    clauses = [f"{words[name]} {listed(rows)}" for name, rows in groups.items() if rows and name in words]
    if clauses:
        sentence += f" Its MAE is {', and '.join(clauses)}."
    split = run.json(paths.SPLIT_SUMMARY) if run.has(paths.SPLIT_SUMMARY) else {"interleaved": False}
    if split["interleaved"]:
        sentence += f" The test posts lie among the training posts in time: quote scheme {split['quote']} instead."
    return " ".join([sentence, *_promise_sentences(run)])


def _promise_sentences(run: RunFolder) -> list[str]:
    """What is promised for the test part, and whether its level is known; nothing where it is not promised."""
    if not run.has(paths.PROMISE):
        return []
    found = {row["metric"]: row for row in run.promise.filter(part=TEST).iter_rows(named=True)}
    if not found:
        return []
    both = " and ".join(
        f"{metric.upper()} {estimate(row['promise'], row['low'], row['high'])}" for metric, row in found.items()
    )
    return [f"The splits in time promise {both} for the test part.", *promise_sentences(run.promise)]


def _metrics(run: RunFolder) -> dict[str, Metrics]:
    """By model, its scores in scheme HOLDOUT; empty where nothing was scored."""
    if not run.has(paths.SCORES):
        return {}
    return {model: metrics for (model,), metrics in by_metric(overall(run.scores).filter(scheme=HOLDOUT), ["model"])}


def tiles(run: RunFolder) -> list[Tile]:
    """The numbers at the head of the page."""
    return [*_score_tiles(_metrics(run)), *_coverage_tiles(run), *_test_tiles(run)]


def _score_tiles(found: dict[str, Metrics]) -> list[Tile]:
    if MAIN_MODEL not in found:
        return []
    shown = []
    for metric in ("src", "mae"):
        row = found[MAIN_MODEL][metric]
        note = f"{number(row['low'])} to {number(row['high'])}" if row["low"] is not None else "no interval"
        shown.append(Tile(f"{metric.upper()} on {HOLDOUT}", number(row["value"]), note))
    baselines = {model: found[model]["mae"]["value"] for model in MODELS if model in found and model != MAIN_MODEL}
    if baselines:
        best = min(baselines, key=lambda model: baselines[model])
        shown.append(Tile("MAE of the best baseline", number(baselines[best]), best))
    return shown


def _coverage_tiles(run: RunFolder) -> list[Tile]:
    if not run.has(paths.COVERAGE):
        return []
    rows = run.csv(paths.COVERAGE).filter(scheme=HOLDOUT, group="all", nominal=NOMINAL)
    cells = [(percent(row["coverage"]), number(row["width"], 2)) for row in rows.iter_rows(named=True)]
    name = f"Coverage of {percent(NOMINAL, 0)} intervals"
    return [Tile(name, coverage, f"mean width {width}") for coverage, width in cells]


def _test_tiles(run: RunFolder) -> list[Tile]:
    if not run.has(paths.POSTS, paths.ENSEMBLE_PREDICTIONS):
        return []
    posts = len(run.posts.filter(split="test"))
    note = f"of {posts:,}" if posts else "no test part"
    return [Tile("Test posts predicted", f"{len(run.test_predictions):,}", note)]


def properties(run: RunFolder) -> list[tuple[str, str]]:
    """Name and value of each property of the run: data set, classes, profile, models, code."""
    return [
        ("Data set", run.dataset_name),
        *(_data_properties(run) if run.has(paths.INGEST_SUMMARY) else []),
        *_class_properties(run),
        ("Profile", str(run.params["profile"])),
        *_model_properties(run),
    ]


def _data_properties(run: RunFolder) -> list[tuple[str, str]]:
    found = run.json(paths.INGEST_SUMMARY)
    splits, label = found["parts"], found["label"]
    first, last = min(split["from"] for split in splits.values()), max(split["to"] for split in splits.values())
    return [
        ("Posts", ", ".join(f"{split['posts']:,} {name}" for name, split in sorted(splits.items(), reverse=True))),
        ("Users", f"{found['users']:,}"),
        ("Time", f"{first[:10]} to {last[:10]}"),
        ("Label", f"log2({run.counted} + 1), mean {number(label['mean'], 2)}, sd {number(label['sd'], 2)}"),
    ]


def _class_properties(run: RunFolder) -> list[tuple[str, str]]:
    rows = []
    if run.has(paths.PROTOTYPE_CLASSES):
        rows.append(("Classes", f"{len(run.classes):,} of the second taxonomy level"))
    if run.has(paths.PROTOTYPE_FIELDS):
        encoders = run.json(paths.PROTOTYPE_FIELDS)["encoders"]
        for kind, fields in sorted(encoders.items()):
            own = str(fields["encoder"])
            used = MODALITIES[kind]
            names = as_names(run.params["encoders"]["stack"][used])
            further = [model for name in names if (model := run.params[f"embed_{used}"][name]["model"]) != own]
            rows.append((f"{kind.capitalize()} encoder", own + (f"; the stack: {listed(further)}" if further else "")))
    return rows


def _model_properties(run: RunFolder) -> list[tuple[str, str]]:
    rows = []
    if run.has(paths.ENSEMBLE_WEIGHTS):
        weights = sorted(run.json(paths.ENSEMBLE_WEIGHTS)["weights"].items(), key=lambda item: -item[1])
        rows.append(("Ensemble", ", ".join(f"{name} {percent(weight, 0)}" for name, weight in weights)))
    if run.has(paths.STACK_MANIFEST):
        code = run.json(paths.STACK_MANIFEST)["code"]
        modified = " (modified)" if code["modified"] else ""
        rows.append(("Code", (code["revision"] or "not recorded")[:12] + modified))
    return rows
