"""``bits``: its output for people and as JSON, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.quantization.result import HEAD
from tests.core.commands.conftest import CommandLine
from tests.core.worker.quantization.hurt import write_hurt
from tests.e2e.workers import write_rows

FIELDS = {"rows", "tokens", "data", "loss_16bit", "whole", "layers", "kept", "free_bytes", "sentence", "peak_bytes"}


@pytest.fixture
def config(cli: CommandLine, tmp_path: Path) -> str:
    """A configuration on a model that 4 bits hurt."""
    base = write_hurt(tmp_path / "hurt")
    rows = write_rows(cli.home / "rows.jsonl", 6)
    path = cli.home / "hurt.toml"
    path.write_text(
        f'[model]\nbase = "{base}"\n[data]\ntrain = "{rows}"\n[train]\nprecision = "fp32"\n[hardware]\ndevice = "cpu"\n'
    )
    return str(path)


def test_a_sentence_with_the_layers_below_and_the_same_as_json(cli: CommandLine, config: str) -> None:
    first, *lines = cli.ok("bits", config, "--rows", "3").out.splitlines()
    assert first.startswith("4 bits cost ")
    assert "your training rows, as none are held out; keep layer" in first
    table = lines.index(HEAD.rstrip())
    assert lines[table + 1].split()[0] == "1"
    assert sum("keep" in line for line in lines[table + 1 : table + 5]) >= 1
    assert lines[-1].startswith('Set model.keep_16bit = "auto", or ["model.layers.')
    found = cli("bits", config, "--rows", "3", "--json").json
    assert set(found) >= FIELDS
    assert found["sentence"] == first
    assert found["rows"] == 3
    # Its advice can be set.
    kept = json.dumps(found["kept"]["patterns"])
    again = cli("bits", config, "--rows", "3", "--set", f"model.keep_16bit={kept}", "--json").json
    assert again["whole"]["kl"] == pytest.approx(found["kept"]["figures"]["kl"], rel=1e-4)


def test_what_cannot_be_is_one_line(cli: CommandLine, config: str) -> None:
    for words, said in (
        (("--rows", "0"), "--rows 0 is not a number of rows"),
        (("--set", "model.base=no-such-model"), "no-such-model"),
        (("--set", "model.keep_16bit=['re:(']"), "model.keep_16bit has re:("),
    ):
        cli.refused(said, "bits", config, *words)
