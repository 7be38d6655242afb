"""From the adapter of a run to the answer of a server that knows nothing of this project."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.export.job import export_job
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.export.result import Agreement
from core.runs.record.store import Run
from tests.core.export.llama_server import llama_server
from tests.core.export.trained_run import make_trained_run, write_adapter, write_rows

pytest.importorskip("llama_cpp_py_sync")
pytest.importorskip("xllamacpp")

ASK = [{"role": "user", "content": "Was ist 17 + 4? Schreibe es auf: äöü 日本語."}]


@pytest.fixture
def run(tmp_path: Path, starter_model_dir: Path) -> Run:
    """A run on the starter model, with an adapter that changes its answers."""
    run = make_trained_run(starter_model_dir, write_rows(tmp_path / "rows.jsonl", 3))
    write_adapter(starter_model_dir, run.adapter_path, strength=0.02)
    return run


@pytest.mark.long
def test_the_starter_is_served_as_it_was_trained(
    run: Run, tmp_path: Path, starter_model_dir: Path, converter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapter → merged → Q8_0 → llama-server → the prompt of training and the answer of the trained model."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    request = ExportRequest(run.path, "gguf", quant="Q8_0", out=tmp_path / "export", rows=1)
    result = export_job(plan_export(request)).run()
    assert result.verified
    assert isinstance(result.agreement, Agreement)
    assert result.agreement.prompts_equal
    file = next(tmp_path.glob("export/*.gguf"))
    with llama_server(file) as server:
        assert server.answer(ASK, 6) == trained_answer(starter_model_dir, run.adapter_path, 6)


def trained_answer(base: Path, adapter: Path, count: int) -> tuple[list[int], list[int]]:
    """The prompt and the greedy answer of the base with the adapter, by plain transformers and PEFT, in fp32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    text = tokenizer.apply_chat_template(ASK, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    made = model.generate(input_ids=ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :]
    return ids[0].tolist(), made.tolist()
