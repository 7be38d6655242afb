"""Errors that a worker reports before it loads the model, and that can be overridden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.launch import launcher
from core.runs.record.events import DataEvent, NoticeEvent, PhaseEvent

from .workers import Workers, failure, only, write_rows

Sections = dict[str, dict[str, Any]]

#: A run of a few steps.
SHORT: Sections = {"train": {"max_steps": 2}, "eval": {"every_steps": None, "exact_match": False}}


@dataclass(frozen=True)
class Case:
    """A configuration that would waste a run, the error, and the key that fixes it."""

    spoil: Callable[[Workers], Sections]
    reason: str
    key: str
    notice: str = ""
    """What is told where it is allowed; the reason where it is empty."""


def _rows(workers: Workers) -> list[dict[str, Any]]:
    return [json.loads(line) for line in workers.train_data.read_text().splitlines()]


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _unlearned(workers: Workers) -> Sections:
    rows = _rows(workers)
    for row in rows[:6]:
        row["messages"][1]["train"] = False
    return {"data": {"train": _write(workers.directory / "unlearned.jsonl", rows)}}


def _two_readings(workers: Workers) -> Sections:
    rows = [{**row, "instruction": "say", "output": "it"} for row in _rows(workers)]
    return {"data": {"train": _write(workers.directory / "two.jsonl", rows)}}


def _leaking(workers: Workers) -> Sections:
    rows = write_rows(workers.directory / "fresh.jsonl", 9, seed=5).read_text().splitlines()
    leaking = workers.directory / "leaking.jsonl"
    leaking.write_text("\n".join([*rows, workers.train_data.read_text().splitlines()[7]]) + "\n")
    return {"data": {"eval": str(leaking)}}


def _cut(workers: Workers) -> Sections:
    rows = [
        {"messages": [{"role": "user", "content": "ticket"}, {"role": "assistant", "content": f"{number} " * 60}]}
        for number in range(30)
    ]
    train = _write(workers.directory / "long.jsonl", rows)
    return {"data": {"train": train, "overlong": "truncate"}, "train": {**SHORT["train"], "max_length": 48}}


def _without_template(workers: Workers) -> Sections:
    model = workers.directory / "base-model"
    shutil.copytree(workers.model, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return {"model": {"base": str(model)}}


def _endless(workers: Workers) -> Sections:
    template = workers.directory / "endless.jinja"
    template.write_text("{% for turn in messages %}{{ turn['role'] + ': ' + turn['content'] + '\n' }}{% endfor %}")
    return {"template": {"file": str(template)}}


CASES = {
    "nothing_supervised": Case(_unlearned, "6 of 40 rows have nothing to learn", "data.supervise"),
    "format_ambiguous": Case(_two_readings, "two.jsonl is read is not clear", "data.format"),
    "eval_leak": Case(_leaking, "1 of 10 held-out rows (10%) are also trained on", "data.eval"),
    "stop_untrained": Case(_cut, "The token that ends an answer is learned in", "train.max_length"),
    "stop_untrained by an endless template": Case(
        _endless, "learned in 0 of 40 rows", "template.name", "answers with no token"
    ),
    "template_missing": Case(_without_template, "has no chat template", "template.name"),
}
#: A case of the rows and a case of the model.
FEW = ("nothing_supervised", "template_missing")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FEW else pytest.mark.long) for name in CASES])
def test_refused_before_the_model_is_loaded_unless_allowed(workers: Workers, name: str) -> None:
    case, code = CASES[name], name.partition(" ")[0]
    sections = SHORT | case.spoil(workers)
    refused = workers.start("refused", **sections)
    last = failure(refused)
    assert case.reason in last.reason
    assert case.key in last.hint
    assert f"--allow {code}" in last.hint
    assert "loading_model" not in {phase.name for phase in only(PhaseEvent, refused)}
    launcher.reap()
    allowed = workers.finished("allowed", **sections | {"data": {**sections.get("data", {}), "allow": code}})
    (notice,) = [notice for notice in only(NoticeEvent, allowed) if notice.code == code]
    assert (case.notice or case.reason) in notice.message
    told = only(DataEvent, allowed)[0]
    assert told.rows == told.used + sum(told.dropped.values())
