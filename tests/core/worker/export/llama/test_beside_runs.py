"""The reader of GGUF files beside a run on a machine with little free memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.chat.engine import ModelSpec
from core.chat.exported import READER
from core.chat.request import ChatRequest, GenerationSettings
from core.errors import UserError
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import merged_model
from tests.core.worker.crowded import crowded_engine, end_run, run_on_cpu
from tests.progress import quiet

pytest.importorskip("llama_cpp_py_sync")


def asked(longest: int) -> ChatRequest:
    return ChatRequest([{"role": "user", "content": "the ticket"}], settings=GenerationSettings(longest, temperature=0))


def test_a_file_and_its_context_have_to_fit_beside_a_run(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model, tokenizer = merged_model(tiny_model_dir, None)
    model.config.max_position_embeddings = 1 << 16
    path = write_tiny_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    # Keys and values of a token in fp16: two layers with two heads of 16 features.
    token = 2 * 2 * 2 * 16 * 2
    least = path.stat().st_size + 512 * token
    run, free = run_on_cpu(), tmp_path / "free"
    spec = ModelSpec(str(path), device="cpu")
    with crowded_engine(f"{READER}.__main__", free, path) as engine:
        free.write_text(str(least - 1))
        crowded = re.escape(f"Run {run.id} trains on the same device, where ")
        with pytest.raises(UserError, match=rf"{crowded}.* are free, and the model takes about "):
            engine.load(spec, quiet)
        free.write_text(str(least))
        engine.load(spec, quiet)
        assert list(engine.generate(asked(4)))[-1]["tokens"] <= 4
        # A long answer has a context of its own.
        free.write_text(str(8192 * token - 1))
        with pytest.raises(UserError, match=rf"{crowded}.* are free, and a context of 8192 tokens takes about "):
            list(engine.generate(asked(5000)))
        assert list(engine.generate(asked(4)))[-1]["tokens"] <= 4, "it goes on"
        # Without a run nobody is harmed.
        end_run(run)
        free.write_text("0")
        engine.load(spec, quiet)
        assert list(engine.generate(asked(4)))[-1]["tokens"] <= 4
