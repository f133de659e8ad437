from __future__ import annotations

import json
from pathlib import Path

import pytest

from popularity.core.errors import ContractError, DataError
from popularity.core.stage import record_resources
from popularity.resources import main


def _record(folder: Path, stage: str, seconds: float, peak: int) -> None:
    folder.mkdir(exist_ok=True)
    values = {"stage": stage, "seconds": seconds, "peak_mib": peak, "largest_child_mib": 5}
    (folder / f"{stage}.json").write_text(json.dumps(values))


def _graph(folder: Path) -> list[str]:
    """The flags of a graph with an encoder for network and stack each."""
    graph, params = folder / "dvc.yaml", folder / "params.yaml"
    graph.write_text(
        "stages:\n  ingest:\n    cmd: a\n  absent:\n    cmd: b\n  embed_text:\n    foreach: [minilm, mpnet, old]\n"
        "    do:\n      cmd: c\n  evaluate:\n    cmd: d\n"
    )
    params.write_text("encoders:\n  network: {text: minilm}\n  stack: {text: mpnet}\n")
    return ["--graph", str(graph), "--params", str(params)]


def test_rows_in_graph_order_with_a_total(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "resources"
    for stage, seconds, peak in (("evaluate", 2.5, 1300), ("aside", 0.25, 10), ("ingest", 10.0, 700)):
        _record(folder, stage, seconds, peak)
    main([str(folder), *_graph(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["ingest", "evaluate", "aside", "total"]
    assert rows[1] == ["evaluate", "2.5", "1,300", "5"]
    assert rows[3] == ["total", "12.8", "1,300", "5"]


def test_of_the_encoders_those_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "resources"
    for stage in ("evaluate", "embed_text@old", "embed_text@mpnet", "ingest", "embed_text@minilm", "embed_text"):
        _record(folder, stage, 1.0, 10)
    main([str(folder), *_graph(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["ingest", "embed_text@minilm", "embed_text@mpnet", "evaluate", "total"]
    assert rows[-1][1] == "4.0"


def test_reads_what_stages_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with record_resources("ingest", tmp_path / "resources" / "ingest.json"):
        pass
    main([str(tmp_path / "resources"), *_graph(tmp_path)])
    stage, seconds, peak, _ = capsys.readouterr().out.splitlines()[1].split()
    assert (stage, seconds) == ("ingest", "0.0")
    assert int(peak.replace(",", "")) > 10


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [("{", ContractError, "cannot be read"), ('{"stage": "a"}', DataError, "not a resource record")],
)
def test_a_broken_record_is_named(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(error, match=rf"bad\.json: {message}"):
        main([str(tmp_path), *_graph(tmp_path)])


def test_no_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no resource records"):
        main([str(tmp_path / "absent"), *_graph(tmp_path)])
