"""Trained models of a run, and the code that loads them."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.runs.catalog import trained as catalog
from core.runs.catalog.earlier import train_further
from core.runs.catalog.rows import parent_of
from core.runs.record.events import BEST_CHOSEN, FinishedEvent, encode_event
from core.runs.record.state import RunState
from core.runs.record.store import Labels, Run, create_run, write_labels
from tests.cases import cases
from tests.core.runs.helpers import live_state


def make_run(method: str = "lora") -> Run:
    sections = {"model": {"base": "/models/base"}, "data": {"train": "/data/rows.jsonl"}, "method": {"name": method}}
    run = create_run(Config.model_validate(sections), "tickets")
    RunState(state="stopped", updated=time.time()).write(run.state_path)
    return run


def add_checkpoint(run: Run, step: int, part: str = "adapter") -> Path:
    path = run.checkpoints_path / f"step-{step:08d}"
    (path / part).mkdir(parents=True)
    names = ("adapter_model.safetensors", "adapter_config.json") if part == "adapter" else ("trained.safetensors",)
    files = {}
    for name in names:
        (path / part / name).write_bytes(f"{step} {name}".encode())
        content = (path / part / name).read_bytes()
        files[f"{part}/{name}"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_text(json.dumps({"files": files, "base_sha256": "ab"}))
    return path


def write_adapter(run: Run, *more: str) -> None:
    """The result of a run."""
    run.adapter_path.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", *more):
        (run.adapter_path / name).write_text("{}")


def refuse(run: Run, *, judged: int, last: int) -> None:
    """Let a run have finished with a result that ``eval.gate`` refuses."""
    refused = "loss is 2 and should be <= 1"
    best = f"; the result is that of step {judged}, {BEST_CHOSEN}" if judged != last else ""
    end = FinishedEvent(step=last, best=20, reason=f"all steps done{best}", refused=refused)
    run.events_path.write_text(encode_event(end))
    RunState(state="finished", refused=refused, updated=time.time()).write(run.state_path)


def test_a_run_is_named_with_a_step(tmp_path: Path) -> None:
    assert catalog.split_step("tickets@120") == ("tickets", 120)
    assert catalog.split_step("tickets") == ("tickets", None)
    assert catalog.split_step("@120") == ("@120", None)
    assert catalog.split_step("me@home") == ("me@home", None)
    directory = tmp_path / "runs@7"
    directory.mkdir()
    assert catalog.split_step(str(directory)) == (str(directory), None)
    run = make_run()
    assert catalog.find_run_at("tickets@20") == (run, 20)
    with pytest.raises(UserError, match="no run called nothing"):
        catalog.find_run_at("nothing@20")


def test_the_newest_whole_checkpoint_stands_in_for_a_result() -> None:
    run = make_run()
    with pytest.raises(UserError, match="neither an adapter nor a whole checkpoint"):
        catalog.find_trained(run)
    for step in (20, 40):
        add_checkpoint(run, step)
    trained = catalog.find_trained(run)
    assert (trained.step, trained.name, trained.label) == (40, "step-40", f"{run.id}, step-40")
    assert trained.adapter == run.checkpoints_path / "step-00000040" / "adapter"
    assert (trained.base, trained.base_sha256) == ("/models/base", "ab")
    assert catalog.find_trained(run, 20).step == 20
    assert catalog.checkpoint_steps(run) == [20, 40]
    (trained.adapter / "adapter_model.safetensors").write_bytes(b"torn")
    assert catalog.find_trained(run).step == 20
    with pytest.raises(UserError, match=r"step 40 of run .* is damaged"):
        catalog.find_trained(run, 40)
    with pytest.raises(UserError, match="no checkpoint of step 30") as refused:
        catalog.find_trained(run, 30)
    assert refused.value.hint == "It has those of 20, 40."


@cases("method", ["lora", "full"])
@cases("judged", [20, 30])
def test_the_judged_checkpoint_stands_in_for_a_refused_result(method: str, judged: int) -> None:
    run, part = make_run(method), "adapter" if method == "lora" else "weights"
    paths = {step: add_checkpoint(run, step, part) for step in (10, 20, 30)}
    refuse(run, judged=judged, last=30)
    trained = catalog.find_trained(run)
    assert (trained.step, trained.judged, catalog.stand_in_step(run), catalog.result_step(run)) == (judged,) * 4
    assert (trained.adapter or trained.weights or Path()).is_relative_to(paths[judged])
    assert (trained.name, trained.label) == (f"step-{judged}", f"{run.id}, step-{judged} (result refused by eval.gate)")
    assert trained.warning == "The result of this run was refused by eval.gate: loss is 2 and should be <= 1."
    assert catalog.find_trained(run, judged) == trained


def test_another_step_than_the_judged_one_says_whose_figures_the_refusal_has() -> None:
    run = make_run()
    for step in (10, 20, 30):
        add_checkpoint(run, step)
    refuse(run, judged=20, last=30)
    for step in (10, 30):
        trained = catalog.find_trained(run, step)
        assert (trained.step, trained.name) == (step, f"step-{step}")
        assert trained.label == f"{run.id}, step-{step} (the result, step 20, is refused by eval.gate)"
        assert trained.warning.startswith("The result of this run, that of step 20, was refused by eval.gate: loss")


def test_no_other_checkpoint_takes_the_place_of_the_judged_one() -> None:
    run = make_run()
    paths = {step: add_checkpoint(run, step) for step in (10, 20, 30)}
    refuse(run, judged=20, last=30)
    (paths[20] / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"step 20 of run .* is damaged") as damaged:
        catalog.find_trained(run)
    assert damaged.value.hint == "It is what eval.gate has refused; name another one."
    shutil.rmtree(paths[20])
    assert catalog.stand_in_step(run) is None
    with pytest.raises(UserError, match=r"no checkpoint of step 20, which eval\.gate has refused") as gone:
        catalog.find_trained(run)
    assert gone.value.hint == "It has those of 10, 30."
    assert catalog.find_trained(run, 30).step == 30
    with pytest.raises(UserError, match=r"no checkpoint of step 40\."):
        catalog.find_trained(run, 40)


def test_a_result_comes_before_checkpoints() -> None:
    run = make_run()
    add_checkpoint(run, 20)
    write_adapter(run, "chat_template.jinja")
    refuse(run, judged=20, last=30)  # a result that is there has passed, whatever the state says
    trained = catalog.find_trained(run)
    assert (trained.step, trained.name, trained.label, trained.warning) == (None, "adapter", run.id, "")
    assert trained.adapter == run.adapter_path
    assert trained.template == str(run.adapter_path / "chat_template.jinja")
    assert catalog.find_trained(run, 20).name == "step-20"


def test_trained_weights_replace_those_of_the_base() -> None:
    run = make_run("full")
    weights = add_checkpoint(run, 20, "weights") / "weights" / "trained.safetensors"
    trained = catalog.find_trained(run)
    assert (trained.base, trained.weights, trained.adapter) == ("/models/base", weights, None)
    run.model_path.mkdir()
    (run.model_path / "config.json").write_text("{}")
    trained = catalog.find_trained(run)
    assert (trained.base, trained.weights, trained.name) == (str(run.model_path), None, "model")
    assert trained.base_sha256 is None, "the result is not the model that was hashed"


@cases("name", ["adapter/z", "adapter/../../../z"])
def test_a_manifest_that_names_a_pipe_or_files_elsewhere_is_no_checkpoint(name: str) -> None:
    checkpoint = add_checkpoint(make_run(), 20)
    assert catalog.matches_manifest(checkpoint, "adapter/")
    os.mkfifo(checkpoint / name)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert not catalog.matches_manifest(checkpoint, "adapter/")


def strings(code: str) -> set[object]:
    return {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and node.value}


def test_an_adapter_is_loaded_on_the_base_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    code = catalog.python_code(tmp_path, is_model=False)
    assert strings(code) == {"/models/base", str(tmp_path)}
    assert "PeftModel.from_pretrained(model, adapter)" in code
    assert "AutoTokenizer.from_pretrained(base)" in code, "a checkpoint has no tokenizer of its own"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert "AutoTokenizer.from_pretrained(adapter)" in catalog.python_code(tmp_path, is_model=False)
    for content in ("", "{", '{"base_model_name_or_path": 3}', "[]"):
        (tmp_path / "adapter_config.json").write_text(content)
        assert "the base model" in strings(catalog.python_code(tmp_path, is_model=False))


@cases("name", ['a"b', "a\\b", "a\nb", "ä日", "a'b"])
def test_any_path_is_python(name: str) -> None:
    path = Path("/runs") / name
    assert strings(catalog.python_code(path, is_model=True)) == {str(path)}


def test_the_code_loads_an_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path / "adapter")
    found: dict[str, object] = {}
    exec(catalog.python_code(tmp_path / "adapter", is_model=False), found)  # noqa: S102
    assert type(found["model"]).__name__.startswith("PeftModel")


def test_a_checkpoint_that_was_taken_is_the_result_until_it_is_given_back() -> None:
    run = make_run()
    write_adapter(run)
    add_checkpoint(run, 20)
    write_labels(run.path, Labels(result=20))
    trained = catalog.find_trained(run)
    assert (trained.step, trained.adapter) == (20, run.checkpoints_path / "step-00000020" / "adapter")
    shutil.rmtree(run.checkpoints_path)
    with pytest.raises(UserError, match="no checkpoint of step 20") as refused:
        catalog.find_trained(run)
    assert f"localtune-tui label {run.id} --result 0" in refused.value.hint
    write_labels(run.path, Labels())
    assert catalog.find_trained(run).adapter == run.adapter_path


@cases(
    ("model", "parent"),
    [
        ({"adapter": "/home/runs/20260101-000000-faq/adapter"}, "20260101-000000-faq"),
        ({"adapter": "/home/runs/20260101-000000-faq/checkpoints/step-00000085/adapter"}, "20260101-000000-faq@85"),
        ({"adapter": "/data/an\x1b[2Jadapter"}, "/data/an�[2Jadapter"),
        ({"base": "/home/runs/20260101-000000-faq/model"}, "20260101-000000-faq"),
        ({"base": "/models/base"}, ""),
        ({}, ""),
    ],
)
def test_a_run_names_the_run_that_it_trains_further(model: dict[str, str], parent: str) -> None:
    assert parent_of({f"model.{key}": value for key, value in model.items()}) == parent


@cases(
    ("method", "said"),
    [
        ({}, ""),
        ({"rslora": True, "alpha": 8.0}, ""),
        ({"rank": 8, "alpha": 16.0}, "was trained with method.rank = 16, and method.rank is 8."),
        ({"alpha": 16.0}, "was trained with method.alpha = 32, and method.alpha is 16."),
        ({"init": "pissa"}, "was trained with method.rank = 8, and method.rank is 16."),
    ],
)
def test_an_adapter_of_another_kind_is_not_trained_further(
    tmp_path: Path, method: dict[str, object], said: str
) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
    model: dict[str, object] = {"model": {"adapter": str(tmp_path)}, "data": {"train": "rows.jsonl"}, "method": method}
    if not said:
        catalog.check_beginning(Config.model_validate(model))
        return
    with pytest.raises(UserError, match=said):
        catalog.check_beginning(Config.model_validate(model))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="There is no adapter in"):
        catalog.check_beginning(Config.model_validate(model))


def test_an_ended_run_is_trained_further_at_half_its_learning_rate() -> None:
    run = make_run()
    write_adapter(run)
    add_checkpoint(run, 20)
    document = train_further(run)
    assert document.get("model.adapter") == str(run.adapter_path)
    assert document.get("train.learning_rate") == 1e-4
    assert document.get("train.epochs") is None
    assert train_further(run, 20).get("model.adapter").endswith("step-00000020/adapter")
    whole = make_run("full")
    whole.model_path.mkdir()
    (whole.model_path / "config.json").write_text("{}")
    assert train_further(whole).get("model.base") == str(whole.model_path)
    assert train_further(whole).get("model.adapter") is None
    live_state().write(run.state_path)
    with pytest.raises(UserError, match="only an ended run is trained further"):
        train_further(run)
