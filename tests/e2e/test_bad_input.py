"""Invalid input of a worker: a clear error, exit code 4, and no partial files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from core.launch import launcher
from core.runs.record.events import NoticeEvent
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.models.spoiling import drop_tensors, edit_json

from .workers import Workers, exit_code, failure, only, steps


@dataclass(frozen=True)
class Case:
    """Invalid input, and the expected error."""

    spoil: Callable[[Workers], dict[str, dict[str, Any]]]
    """Creates the invalid input, and names it in the configuration."""
    reason: str
    hint: str


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


def _mistaken_template(workers: Workers) -> dict[str, dict[str, Any]]:
    path = workers.directory / "mistaken.jinja"
    path.write_text("{% for message in %}")
    return {"template": {"file": str(path)}}


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
    "weights that lack a part": Case(
        _spoiled_model(lambda model: drop_tensors(model, "post_attention_layernorm")),
        "model.layers.0.post_attention_layernorm.weight, model.layers.1.post_attention_layernorm.weight",
        "from the same model",
    ),
    "no such data": Case(_options(data={"train": "/nowhere/rows.jsonl"}), "/nowhere/rows.jsonl", ""),
    "all rows too long": Case(_options(train={"max_length": 8}), "No row of", "train.max_length"),
    "a row too long where that is refused": Case(
        _options(train={"max_length": 80}, data={"overlong": "refuse"}), "train.jsonl, line", "train.max_length"
    ),
    "no such layers": Case(
        _options(method={"target_modules": ["no_such_layer"]}), "matches no layer", "down_proj, gate_proj, k_proj"
    ),
    "more layers than there are": Case(
        _options(method={"name": "freeze", "dropout": 0.0, "trainable_layers": 3}), "the model has 2 layers", ""
    ),
    "a template that is not there": Case(_options(template={"file": "/nowhere.jinja"}), "cannot be read", "path"),
    "a template with a mistake": Case(_mistaken_template, "40 x template_error", "template.file"),
    "cuda without cuda": Case(_options(hardware={"device": "cuda"}), "hardware.device is cuda", "auto"),
}


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[dict[str, Run]]:
    """A run for each case, all over; a few at a time."""
    workers = Workers(tmp_path_factory.mktemp("bad"), tiny_model_dir)
    workers.home.mkdir()
    configs = {name: workers.config(**case.spoil(workers)) for name, case in CASES.items()}

    def work(name: str) -> Run:
        run = launcher.start_run(configs[name], name)
        workers.runs.append(run)
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
