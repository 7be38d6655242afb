"""Unsafe models: foreign code is never run, by a worker or the chat engine, whatever is in the model's directory."""

from __future__ import annotations

import importlib.util
import pickle
import re
import shutil
from pathlib import Path

import pytest

from core.chat.engine import ChatEngine, ModelSpec
from core.chat.request import ChatRequest, GenerationSettings
from core.errors import UserError
from tests.canary import name_code, plant_code, plant_everything, plant_pickle
from tests.core.models.spoiling import edit_json
from tests.core.worker.model.gguf_files import write_gguf

from .workers import Workers, adapter_bytes, failure


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """The file created if any code runs."""
    return tmp_path / "it-was-run"


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path, trace: Path) -> Path:
    """A sound model among files that must not be touched."""
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "unsafe"))
    plant_everything(model, trace)
    return model


def test_the_canaries_sing(tmp_path: Path, trace: Path) -> None:
    pickle.loads(plant_pickle(tmp_path / "x.bin", trace).read_bytes())  # noqa: S301 - to prove that the file is harmful
    assert trace.is_dir()
    trace.rmdir()
    spec = importlib.util.spec_from_file_location("evil", plant_code(tmp_path / "evil.py", trace))
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert trace.is_dir()


def test_a_worker_trains_on_the_safetensors_and_runs_nothing(workers: Workers, model: Path, trace: Path) -> None:
    run = workers.finished("unsafe", model={"base": str(model)}, train={"max_steps": 2})
    assert adapter_bytes(run)
    assert not trace.exists()


def test_a_worker_refuses_pickles_and_code_and_runs_nothing(workers: Workers, model: Path, trace: Path) -> None:
    coded = Path(shutil.copytree(model, model.with_name("coded")))
    name_code(coded)
    (model / "model.safetensors").unlink()
    runs = [workers.start(base.name, model={"base": str(base)}) for base in (model, coded)]
    pickled, with_code = map(failure, runs)
    assert "pickles only" in pickled.reason
    assert "auto_map" in with_code.reason
    assert pickled.hint
    assert with_code.hint
    assert not trace.exists()
    assert not list(workers.home.rglob("evil*")), "code was copied to where it could be imported from"


def test_the_chat_engine_refuses_them_too_and_runs_nothing(model: Path, trace: Path) -> None:
    coded = Path(shutil.copytree(model, model.with_name("coded")))
    name_code(coded)
    pickled = Path(shutil.copytree(model, model.with_name("pickled")))
    (pickled / "model.safetensors").unlink()
    adapter = model.with_name("adapter")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    plant_pickle(adapter / "adapter_model.bin", trace)
    with ChatEngine() as engine:
        for spec, says in (
            (ModelSpec(str(pickled), device="cpu"), "pickles only"),
            (ModelSpec(str(coded), device="cpu"), "auto_map"),
            (ModelSpec(str(model), str(adapter), device="cpu"), "pickles only"),
        ):
            with pytest.raises(UserError, match=says):
                engine.load(spec, lambda _detail, _done, _total: None)
        engine.load(ModelSpec(str(model), device="cpu"), lambda _detail, _done, _total: None)
        asked = ChatRequest([{"role": "user", "content": "the ticket"}], settings=GenerationSettings(3))
        assert list(engine.generate(asked))[-1]["tokens"] > 0
    assert not trace.exists()


def test_kernels_of_others_and_holes_are_refused(workers: Workers, tmp_path: Path, tiny_model_dir: Path) -> None:
    kernels = Path(shutil.copytree(tiny_model_dir, tmp_path / "kernels"))
    edit_json(kernels / "config.json", _attn_implementation="kernels-community/x")
    holes = write_gguf(tiny_model_dir, tmp_path / "holes.gguf", without=("blk.1.ffn_down.weight",))
    immense = write_gguf(tiny_model_dir, tmp_path / "immense.gguf", num_hidden_layers=100_000_000)
    cases = {
        kernels: "_attn_implementation names kernels-community/x",
        holes: "lacks weights of its architecture: blk.1.ffn_down.weight",
        immense: "llama.block_count is 100000000",
    }
    run = workers.start("holes", model={"base": str(holes)})
    assert cases[holes] in failure(run).reason
    with ChatEngine() as engine:
        for base, says in cases.items():
            with pytest.raises(UserError, match=re.escape(says)):
                engine.load(ModelSpec(str(base), device="cpu"), lambda _detail, _done, _total: None)
