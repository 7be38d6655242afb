"""``compare``: to the terminal, to files and as JSON."""

from __future__ import annotations

from pathlib import Path

from .conftest import CommandLine


def test_two_runs_are_compared(cli: CommandLine, tmp_path: Path) -> None:
    for steps in (2, 4):
        cli.train(f"run{steps}", steps=steps, demo=True)
    out = cli("compare", "run2", "run4").out
    assert "best eval loss" in out
    assert "200 tok/s" in out
    found = cli("compare", "run2", "run4", "--json").json
    assert [run["letter"] for run in found["runs"]] == ["A", "B"]
    report, table, curves = tmp_path / "both.md", tmp_path / "both.csv", tmp_path / "curves.csv"
    words = ("--markdown", str(report), "--csv", str(table), "--curves", str(curves))
    assert cli("compare", "run2", "run4", *words).code == 0
    assert report.read_text(encoding="utf-8").startswith("# Runs compared\n")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 3
    assert curves.read_text(encoding="utf-8").startswith("run,metric,step,tokens,seconds,value\n")
    assert "# Runs compared" in cli("compare", "run2", "run4", "--markdown", "-").out
    for named in (["run4"], ["run4", "latest"]):
        cli.refused("One run is nothing to compare. Name two to 6 different ones.", "compare", *named)
    cli.refused("cannot be written", "compare", "run2", "run4", "--csv", str(tmp_path / "none" / "x.csv"))
