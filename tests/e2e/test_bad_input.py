"""Invalid input of a worker: a clear error, exit code 4, and no partial files; some of it can be overridden."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.launch import launcher
from core.runs.record.events import DataEvent, NoticeEvent, PhaseEvent
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.models.spoiling import edit_json

from .workers import Workers, exit_code, failure, only, steps, write_rows


@dataclass(frozen=True)
class Case:
    """Invalid input, and the expected error."""

    spoil: Callable[[Workers], dict[str, dict[str, Any]]]
    """Creates the invalid input, and names it in the configuration."""
    reason: str
    hint: str
    notice: str = ""
    """Output where it is allowed; the reason where it is empty."""


def _spoiled_model(change: Callable[[Path], None]) -> Callable[[Workers], dict[str, dict[str, Any]]]:
    def spoil(workers: Workers) -> dict[str, dict[str, Any]]:
        number = len(list(workers.directory.glob("model-*")))
        model = workers.directory / f"model-{number}"
        shutil.copytree(workers.model, model)
        change(model)
        return {"model": {"base": str(model)}}

    return spoil


def _truncate_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _options(**sections: dict[str, Any]) -> Callable[[Workers], dict[str, dict[str, Any]]]:
    return lambda _: sections


CASES = {
    "no such model": Case(
        _options(model={"base": "nobody/nothing-7b"}), "nobody/nothing-7b is not on this machine", "fetch"
    ),
    "weights cut short": Case(_spoiled_model(_truncate_weights), "model.safetensors", "again"),
    "an encoder": Case(
        _spoiled_model(lambda model: edit_json(model / "config.json", model_type="roberta", architectures=None)),
        "is an encoder (roberta), not a causal language model",
        "ForCausalLM",
    ),
    "no such data": Case(_options(data={"train": "/nowhere/rows.jsonl"}), "/nowhere/rows.jsonl", ""),
    "more layers than there are": Case(
        _options(method={"name": "freeze", "dropout": 0.0, "trainable_layers": 3}), "the model has 2 layers", ""
    ),
    "a template that is not there": Case(_options(template={"file": "/nowhere.jinja"}), "cannot be read", "path"),
    "cuda without cuda": Case(_options(hardware={"device": "cuda"}), "hardware.device is cuda", "auto"),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[dict[str, Run]]:
    """A run for each case, all over; a few at a time."""
    workers = Workers(tmp_path_factory.mktemp("bad"), tiny_model_dir)
    configs = {name: workers.config(**case.spoil(workers)) for name, case in CASES.items()}

    def work(name: str) -> Run:
        run = launcher.start_run(configs[name], name)
        exit_code(run)
        return run

    with workers.environment(), ThreadPoolExecutor(3) as pool:
        runs = dict(zip(CASES, pool.map(work, CASES), strict=True))
    yield runs
    workers.close()


@cases("name", CASES)
def test_bad_input_is_answered_with_a_sentence(failed: dict[str, Run], name: str) -> None:
    import torch

    if name == "cuda without cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run, case = failed[name], CASES[name]
    end = failure(run)
    assert case.reason in end.reason
    assert case.hint in end.hint
    assert end.hint
    assert (end.step, end.adapter) == (0, None)
    assert steps(run) == []
    # They are started side by side, on one CPU.
    assert [event for event in only(NoticeEvent, run) if event.code not in ("device", "shared_device")] == []
    assert not run.adapter_path.exists()
    assert not run.checkpoints_path.exists()
    assert not run.socket_path.exists()


Sections = dict[str, dict[str, Any]]

#: A run of a few steps.
SHORT: Sections = {"train": {"max_steps": 2}, "eval": {"every_steps": None, "exact_match": False}}


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


OVERRIDDEN = {
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
FEW = {"nothing_supervised", "template_missing"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FEW else pytest.mark.long) for name in OVERRIDDEN]
)
def test_refused_before_the_model_is_loaded_unless_allowed(workers: Workers, name: str) -> None:
    case, code = OVERRIDDEN[name], name.partition(" ")[0]
    sections = SHORT | case.spoil(workers)
    refused = workers.start("refused", **sections)
    last = failure(refused)
    assert case.reason in last.reason
    assert case.hint in last.hint
    assert f"--allow {code}" in last.hint
    assert "loading_model" not in {phase.name for phase in only(PhaseEvent, refused)}
    launcher.reap()
    allowed = workers.finished("allowed", **sections | {"data": {**sections.get("data", {}), "allow": code}})
    (notice,) = [notice for notice in only(NoticeEvent, allowed) if notice.code == code]
    assert (case.notice or case.reason) in notice.message
    told = only(DataEvent, allowed)[0]
    assert told.rows == told.used + sum(told.dropped.values())
