"""Writes the generated parts of README.md and docs/: python -m popularity.docs; --check only compares.

A generated part stands between two comments, `<!-- generated: NAME -->` and `<!-- end -->`. NAME is one of:

    stages            every stage of dvc.yaml in one line
    stage files       parameters, inputs and outputs of every stage of dvc.yaml
    parameters        every key of params.yaml with its comment and its value in profile demo
    contracts         the columns of every table that passes between stages
    headline          the score table of README.md, from the CSV files of two data sets
    results/FILE.csv  a table of docs/results

`tests/docs` fails if a part differs from the output of this command.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from popularity.core import paths
from popularity.core.config import read_yaml
from popularity.core.contracts import Column, Contract
from popularity.core.errors import DataError
from popularity.core.params_text import edited
from popularity.core.stage import run
from popularity.profile import PROFILES, read_profiles

COMMAND = "python -m popularity.docs"
PACKAGE = Path(__file__).resolve().parent
PART = re.compile(r"(<!-- generated: ([^\n]+?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
RESULTS = Path("docs") / "results"
PROFILE, DEMO_DATA = "demo", paths.DEMO
DATA_FOLDERS = ("data", "models", "reports", "submissions")
COSTS = "reports/resources/"  # time and memory of every stage
COMMENT_COLUMN = 20  # a comment on a line of its own that starts further right continues the comment above
HEADLINE = {"demo-scores.csv": "demo (generated)", "memes-scores.csv": "memes (real posts)"}
HEADLINE_MODELS = ("stack", "metadata", "constant")

Row = Sequence[str]


def documents(root: Path) -> list[Path]:
    """README.md and the pages of docs/ below `root`, in name order."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def refreshed(text: str, root: Path) -> str:
    """`text` with each generated part written anew from the files below `root`.

    Raises:
        DataError: no function generates a part of this name.
    """
    return PART.sub(lambda part: f"{part[1]}{generate(part[2], root)}\n{part[3]}", text)


def generate(name: str, root: Path) -> str:
    """The Markdown of the part `name`.

    Raises:
        DataError: no function generates a part of this name.
    """
    if name.startswith("results/"):
        return markdown_table(*read_results(root / "docs" / name))
    parts = {
        "stages": stages_part,
        "stage files": stage_files_part,
        "parameters": parameters_part,
        "contracts": lambda _: contracts_part(),
        "headline": headline_part,
    }
    if name not in parts:
        raise DataError(f"generated part '{name}'", expected=f"one of {', '.join(parts)} or results/FILE.csv")
    return parts[name](root)


def stages_part(root: Path) -> str:
    """A line for every stage of dvc.yaml: its name and what it does."""
    return markdown_table(
        ("stage", "what it does"), [(f"`{name}`", stage["desc"]) for name, stage in _stages(root).items()]
    )


def stage_files_part(root: Path) -> str:
    """A row for every stage of dvc.yaml: sections of params.yaml, files it reads, files it writes."""
    rows = []
    for name, stage in _stages(root).items():
        sections = [entry for entry in stage.get("params", []) if isinstance(entry, str)]
        deps = [path for path in map(_path, stage.get("deps", [])) if path.startswith((*DATA_FOLDERS, "$"))]
        read = [path for path in deps if not path.startswith(COSTS)]
        written = [_path(out) for out in (*stage.get("outs", []), *stage.get("metrics", []))]
        kept = [path for path in written if not path.startswith(COSTS)]
        rows.append((f"`{name}`", _names(sections), _names(read), _names(kept)))
    return markdown_table(("stage", "parameters", "reads", "writes"), rows)


def _stages(root: Path) -> dict[str, Any]:
    """The stages of dvc.yaml; a stage for each entry of a map once, with `<name>` for the name of the entry."""
    found = {}
    for name, stage in read_yaml(root / "dvc.yaml")["stages"].items():
        text = json.dumps(stage.get("do", stage)).replace("${key}", "<name>")
        found[name] = json.loads(text)
    return found


def parameters_part(root: Path) -> str:
    """The tables of params.yaml with the values of profile `demo` on the demo data, whatever the file holds now."""
    values = {("profile",): PROFILE, ("dataset", "root"): DEMO_DATA, **read_profiles(root / PROFILES)[PROFILE]}
    return parameter_tables(edited((root / "params.yaml").read_text(encoding="utf-8"), values, f"profile '{PROFILE}'"))


def parameter_tables(text: str) -> str:
    """A table for every section of a params.yaml: key, value, and the comment of the key."""
    comments = _key_comments(text)
    blocks: list[str] = []
    for section, content in YAML(typ="safe", pure=True).load(text).items():
        if isinstance(content, Mapping):
            rows = [
                (f"`{key}`", value, _escaped(comments.get(f"{section}.{key}", "")))
                for key, value in _rows_of(section, content, comments)
            ]
            heading = [
                f"### `{section}`",
                _escaped(comments.get(section, "")),
                markdown_table(("key", "value", "meaning"), rows),
            ]
            blocks.extend(filter(None, heading))
    return "\n\n".join(blocks)


def contracts_part() -> str:
    """A heading and a table of columns for every contract of the package, in the order of its source."""
    blocks = []
    for module, name, column_comments, comment in _contract_sources():
        contract: Contract = getattr(importlib.import_module(module), name)
        rows = [
            (
                f"`{column}`",
                _type_name(rule),
                "yes" if rule.nullable else "",
                _meaning(rule, column_comments.get(column)),
            )
            for column, rule in contract.columns.items()
        ]
        further = " Further columns follow." if contract.extra else ""
        description = f"{_escaped(comment)}\n\n" if comment else ""
        blocks.append(
            f"### `{name}`\n\nIn `{module.removeprefix('popularity.').replace('.', '/')}.py`. "
            f"Unique key: {_names(contract.key)}.{further}\n\n{description}"
            + markdown_table(("column", "type", "may be null", "meaning"), rows)
        )
    return "\n\n".join(blocks)


def headline_part(root: Path) -> str:
    """The holdout scores of both data sets side by side, from their tables in docs/results."""
    rows = []
    for file, label in HEADLINE.items():
        head, scores = read_results(root / RESULTS / file)
        for row in scores:
            cells = dict(zip(head, row, strict=True))
            if cells["split"] == "holdout" and cells["model"] in HEADLINE_MODELS:
                rows.append((label, *(cells[name] for name in ("model", "posts", "SRC", "MAE"))))
    return markdown_table(("data", "model", "posts", "SRC", "MAE"), rows)


def read_results(file: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of docs/results as they are shown.

    The columns `x low` and `x high` are joined to `x [low, high]`; whole numbers get commas.
    """
    with file.open(encoding="utf-8", newline="") as stream:
        head, *rows = list(csv.reader(stream))
    bounded = {name for name in head if f"{name} low" in head}
    shown = [name for name in head if not any(name in (f"{other} low", f"{other} high") for other in bounded)]
    table = []
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        table.append([_estimate(cells, name) if name in bounded else _with_commas(cells[name]) for name in shown])
    return shown, table


def markdown_table(head: Row, rows: Sequence[Row]) -> str:
    """A table of Markdown without padding."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _estimate(cells: Mapping[str, str], name: str) -> str:
    low, high = cells[f"{name} low"], cells[f"{name} high"]
    return f"{cells[name]} [{low}, {high}]" if low else cells[name]


def _with_commas(cell: str) -> str:
    return f"{int(cell):,}" if cell.isdigit() else cell


def _path(entry: str | Mapping[str, Any]) -> str:
    return entry if isinstance(entry, str) else next(iter(entry))


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _shown(value: Any) -> str:
    """A value of params.yaml on one line, in YAML's flow form."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return '""' if value == "" else str(value)


def _rows_of(section: str, content: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Rows (dotted key, value as shown) of a section; an inner mapping has a row a key, and one for its comment."""
    for key, value in content.items():
        below = f"{section}.{key}"
        if isinstance(value, Mapping) and value and not _is_free(value, below):
            if below in comments:
                yield key, ""
            for inner, leaf in _rows_of(below, value, comments):
                yield f"{key}.{inner}", leaf
        else:
            yield key, f"`{_shown(value)}`"


FREE_KEYS = ("choices", "low")  # of a range or a list of choices in a search space


def _is_free(value: Mapping[str, Any], path: str) -> bool:
    """True if a mapping is one value: a range or choices of a search space, or a registered configuration."""
    return any(key in value for key in FREE_KEYS) or path.startswith("tune.configurations.")


def _key_comments(text: str) -> dict[str, str]:
    """Dotted key -> its comment: the one after the value, and the lines of comment above the key."""
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        key = re.match(r"([\w.]+):(?: |$)", line.lstrip())
        remark = re.search(r"(?:^|\s)# ?(.*)$", line)
        if key:
            path = [(depth, name) for depth, name in path if depth < indent] + [(indent, key[1])]
            words = [*above, remark[1]] if remark else above
            above = []
        elif remark and indent >= COMMENT_COLUMN:
            words = [remark[1]]
        elif remark and line.lstrip().startswith("#"):
            above = [*above, remark[1]]
            continue
        else:
            above = []
            continue
        name = ".".join(part for _, part in path)
        comments[name] = " ".join(filter(None, [comments.get(name, ""), *words])).strip()
    return {name: comment for name, comment in comments.items() if comment}


def _type_name(rule: Column) -> str:
    return "Datetime (UTC)" if str(rule.dtype).startswith("Datetime") else str(rule.dtype)


def _meaning(rule: Column, comment: str | None) -> str:
    values = f"one of {_names(rule.values)}" if rule.values else ""
    return "; ".join(filter(None, (_escaped(comment or ""), values)))


def _escaped(comment: str) -> str:
    """The comment with `<` escaped: Markdown would take `<name>` for a tag."""
    return comment.replace("<", chr(92) + "<")


def _contract_sources() -> Iterator[tuple[str, str, dict[str, str], str]]:
    """(module, name, comment of each column, comment above) of every module-level `NAME = Contract(...)`."""
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "= Contract(" in text:
            module = ".".join(("popularity", *file.relative_to(PACKAGE).with_suffix("").parts))
            comments = _line_comments(text)
            for node in ast.parse(text).body:
                if isinstance(node, ast.Assign) and _calls_contract(node.value):
                    yield (
                        module,
                        ast.unparse(node.targets[0]),
                        _column_comments(node.value, comments),
                        " ".join(_lines_above(node.lineno, 0, comments)),
                    )


def _calls_contract(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == Contract.__name__


def _column_comments(contract: ast.expr, comments: Mapping[int, tuple[str, bool]]) -> dict[str, str]:
    """Column -> the comment lines above it and the comment on its line, which belongs to the last column there."""
    columns = next(node for node in ast.walk(contract) if isinstance(node, ast.Dict))
    pairs = [(key, value.end_lineno or 0) for key, value in zip(columns.keys, columns.values, strict=True)]
    last_of_line = {line: key for key, line in pairs}
    found = {}
    for key, line in pairs:
        if isinstance(key, ast.Constant):
            words = _lines_above(key.lineno, contract.lineno, comments)
            if last_of_line[line] is key and line in comments:
                words.append(comments[line][0])
            found[str(key.value)] = " ".join(words)
    return found


def _lines_above(line: int, first: int, comments: Mapping[int, tuple[str, bool]]) -> list[str]:
    """The lines of comment right above `line`, none of them before the line `first`."""
    words: list[str] = []
    while line - 1 > first and comments.get(line - 1, ("", False))[1]:
        line -= 1
        words.insert(0, comments[line][0])
    return words


def _line_comments(text: str) -> dict[int, tuple[str, bool]]:
    """Line number -> (its comment, True if nothing else is on the line)."""
    return {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    parser.add_argument("--folder", type=Path, default=Path(), help="root of the repository")
    args = parser.parse_args(argv)
    for page in documents(args.folder):
        text = page.read_text(encoding="utf-8")
        new = refreshed(text, args.folder)
        if new != text and args.check:
            raise DataError(
                f"{page} is out of date", expected="the text that its sources give now", fix=f"run {COMMAND}"
            )
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page}: refreshed")


if __name__ == "__main__":
    run(main)
