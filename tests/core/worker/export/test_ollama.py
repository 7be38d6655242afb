from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from core.config.schema import ChatSection
from core.runs.catalog.trained import find_trained
from core.worker.export import ollama
from core.worker.export.beside import Conversation
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.tiny_model import CHATML


def test_a_modelfile_has_the_sampling_of_the_chat(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parameters are written, since Ollama has other defaults, such as 40 for top_k."""
    monkeypatch.setattr(ollama, "adds_bos", lambda _: False)
    trained = find_trained(make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 2)))
    conversation = Conversation(CHATML, is_own=True, stop_ids=(4,), stops=("<|im_end|>",), bos="", eos="")

    def parameters(chat: ChatSection) -> list[str]:
        config = trained.config.model_copy(update={"chat": chat})
        asked = dataclasses.replace(trained, config=config)
        ollama.write_modelfile(tmp_path / "model.gguf", tiny_model_dir, asked, conversation, "", [])
        lines = (tmp_path / "Modelfile").read_text().splitlines()
        return [line.removeprefix("PARAMETER ") for line in lines if line.startswith("PARAMETER ")]

    plain = ["temperature 0", "top_k 0", "top_p 1", "min_p 0", "repeat_penalty 1"]
    assert parameters(ChatSection()) == ['stop "<|im_end|>"', "num_ctx 512", *plain]
    chat = ChatSection(temperature=0.7, top_k=20, min_p=0.05, repetition_penalty=1.1, seed=7, stop=["User:"])
    assert parameters(chat) == [
        *('stop "<|im_end|>"', 'stop "User:"', "num_ctx 512"),
        *("temperature 0.7", "top_k 20", "top_p 1", "min_p 0.05", "repeat_penalty 1.1", "seed 7"),
    ]
