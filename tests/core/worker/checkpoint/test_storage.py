"""A run goes on with the base that it began with, in 4 bits where that was, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.runs.record.events import NoticeEvent
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import Checkpoint, hash_manifest
from core.worker.checkpoint.storage import (
    KEY,
    Storage,
    check_storage,
    layers_4bit,
    layers_16bit,
    storage_facts,
    storage_of,
)
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import load_model
from tests.e2e.workers import adapter_bytes, only, steps
from tests.families import forked
from tests.families.conftest import Trained

GATES = [f"model.layers.{layer}.linear_attn.in_proj_{end}" for layer in range(3) for end in "ab"]


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained("qwen3_5", tmp_path_factory.mktemp("qwen3_5"))


@pytest.fixture(scope="module")
def qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained("qwen3_moe", tmp_path_factory.mktemp("qwen3_moe"))


def change(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


# Layers in 16 bit, and their record in checkpoints.


def adapted(config: Config, found: Checkpoint | None = None) -> Any:
    """The model of a run with its adapters."""
    storage = storage_of(config, found)
    loaded = load_model(
        Path(config.model.base),
        method=config.method.name,
        precision="fp32",
        device="cpu",
        for_training=True,
        keep_16bit=storage.keep,
        always_16bit=storage.always,
    )
    return attach_adapters(loaded.model, config.method, seed=0)


def checkpoint(**manifest: Any) -> Checkpoint:
    return Checkpoint(Path("step-00000008"), manifest)


@pytest.mark.long
def test_recorded_preparations_are_loaded_whatever_new_runs_choose(qwen3_5: Trained) -> None:
    kept = "layers.3.mlp.down_proj"
    config = change(qwen3_5.config, "model", keep_16bit=[kept])
    model = adapted(config)
    recorded = storage_facts(config, model)
    assert recorded == {KEY: sorted(["lm_head", f"model.{kept}", *GATES])}
    assert check_storage(checkpoint(**recorded), config, model) == ""

    found = checkpoint(layers_16bit=["lm_head", "model.layers.1.mlp.up_proj", *GATES[2:]])
    again = adapted(config, found)
    assert layers_16bit(again) == sorted(found.manifest[KEY])
    sentence = "As before, linear_attn.in_proj_a, linear_attn.in_proj_b are in 4 bits; a new run has them in 16."
    assert check_storage(found, config, again) == sentence


def test_a_base_that_cannot_be_loaded_as_it_was_is_refused_by_name(qwen3_5: Trained) -> None:
    config, model = qwen3_5.config, adapted(qwen3_5.config)
    names = layers_16bit(model)
    with pytest.raises(UserError, match=r"step-00000008 was trained .* with mixer.out_proj in 16 bit, now in 4 bits"):
        check_storage(checkpoint(layers_16bit=[*names, "model.layers.0.mixer.out_proj"]), config, model)
    with pytest.raises(UserError, match=r"with linear_attn.in_proj_a in 4 bits, now in 16 bit"):
        check_storage(checkpoint(layers_16bit=[name for name in names if "proj_a" not in name]), config, model)
    with pytest.raises(UserError, match="is not a list of names"):
        storage_of(config, checkpoint(layers_16bit={"a": 1}))


def test_of_a_base_that_is_not_in_4_bits_nothing_is_asked(qwen3_5: Trained) -> None:
    config = change(qwen3_5.config, "method", name="lora")
    model = adapted(config)
    assert layers_4bit(model) == []
    assert storage_facts(config, model) == {KEY: None}
    for found in (checkpoint(), checkpoint(layers_16bit=None)):
        assert storage_of(config, found) == storage_of(config, None)
        assert check_storage(found, config, model) == ""


def test_options_of_later_versions_say_that_a_run_was_stored_as_now(qwen3_5: Trained) -> None:
    plain = qwen3_5.config
    for config in (change(plain, "model", keep_16bit=["up_proj"]), change(plain, "method", target_experts="off")):
        assert storage_of(config, checkpoint()) == storage_of(config, None)
    assert storage_of(plain, checkpoint()).always == ()


def test_experts_of_an_earlier_version_are_refused_where_its_adapters_would_fit(qwen3_moe: Trained) -> None:
    config = change(qwen3_moe.config, "method", target_modules=["q_proj", "v_proj"], target_experts="auto")
    model, recorded = adapted(config, checkpoint()), storage_facts(config, adapted(config))
    with pytest.raises(UserError, match="does not say that its experts were in 4 bits, as they are now"):
        check_storage(checkpoint(), config, model)
    assert check_storage(checkpoint(**recorded), config, adapted(config, checkpoint(**recorded))) == ""


# Runs.


def as_an_earlier_version() -> None:
    """Leave nothing but the head in 16 bit."""
    vars(Storage)["__init__"].__defaults__ = ((),)


def cut(run: Run, home: Path, *, recorded: bool) -> Run:
    """A copy of a run that got to step 8 and was killed.

    Args:
        run: The run.
        home: Where the copy goes.
        recorded: Its checkpoint records the layers in 16 bit.
    """
    copy = Run(shutil.copytree(run.path, home / "runs" / f"{run.id}-{'told' if recorded else 'untold'}"))
    shutil.rmtree(copy.adapter_path)
    *_, first = sorted(copy.checkpoints_path.iterdir(), reverse=True)
    for path in copy.checkpoints_path.iterdir():
        if path != first:
            shutil.rmtree(path)
    manifest = json.loads((first / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["step"] == 8
    if not recorded:
        del manifest[KEY]
    manifest["manifest_sha256"] = hash_manifest(manifest)
    (first / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


@pytest.mark.long
def test_a_run_of_an_earlier_version_goes_on_with_its_gates_in_4_bits_to_the_bit(qwen3_5: Trained) -> None:
    whole, code = forked.begin(qwen3_5.config, qwen3_5.home, "earlier", first=as_an_earlier_version)
    assert code == 0, (whole.path / "worker.log").read_text(errors="replace")[-4000:]
    assert adapter_bytes(whole) != adapter_bytes(qwen3_5.whole)
    for recorded in (False, True):
        run = cut(whole, qwen3_5.home, recorded=recorded)
        assert forked.resume(run, qwen3_5.home) == 0, (run.path / "worker.log").read_text()[-4000:]
        assert adapter_bytes(run) == adapter_bytes(whole)
        losses = [step.loss for step in steps(run) if step.step > 8]
        assert losses[-12:] == [step.loss for step in steps(whole) if step.step > 8]
        (told,) = (notice for notice in only(NoticeEvent, run) if notice.code == "resumed")
        assert told.hint == (
            "As before, linear_attn.in_proj_a, linear_attn.in_proj_b are in 4 bits; a new run has them in 16."
        )
        newest = max(run.checkpoints_path.iterdir()) / "manifest.json"
        assert json.loads(newest.read_text(encoding="utf-8"))[KEY] == ["lm_head"]
