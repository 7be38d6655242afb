from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserError
from core.runs.catalog.trained import find_trained
from core.runs.record.store import Run
from core.worker.export.verify import reference
from core.worker.export.verify.compare import Proof
from core.worker.export.verify.plain import compare_plain
from core.worker.export.verify.reference import measure_reference
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.progress import quiet


def measure(run: Run, directory: Path, rows: int = 4) -> Proof:
    directory.mkdir()
    measure_reference(find_trained(run), directory, rows, quiet, plain_base=True)
    return Proof.read(directory)


@pytest.mark.long
def test_held_out_rows_come_before_those_of_the_training(tmp_path: Path, tiny_model_dir: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 40)
    held_out = write_rows(tmp_path / "eval.jsonl", 3)
    kinds = (("eval", held_out, 0.0, 3), ("held_out", None, 0.1, 4), ("training", None, 0.0, 4))
    for name, eval_data, share, count in kinds:
        run = make_trained_run(tiny_model_dir, data, eval_data=eval_data, eval_share=share)
        proof = measure(run, tmp_path / name)
        assert (proof.data, len(proof.rows), proof.arithmetic) == (name, count, "fp32")
    row = proof.rows[1]
    assert [message["role"] for message in row.messages] == ["user"]
    assert row.input_ids[: len(row.prompt_ids)] == row.prompt_ids, "as a row of training begins"
    assert row.positions[0] == len(row.prompt_ids) - 1, "the first token of the answer"
    assert len(row.input_ids) == row.positions[-1] + 1


def test_plain_text_tokens_and_preference_pairs_are_compared_too(tmp_path: Path, tiny_model_dir: Path) -> None:
    lines = {
        "text": {"text": "the ticket of area 7"},
        "dpo": {"prompt": "the ticket", "chosen": "urgency high", "rejected": "urgency low"},
        "tokens": {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    }
    found = {}
    for name, line in lines.items():
        data = tmp_path / f"{name}.jsonl"
        data.write_text(json.dumps(line) + "\n")
        run = make_trained_run(tiny_model_dir, data)
        if name == "dpo":
            run.config_path.write_text(run.config_path.read_text().replace('objective = "sft"', 'objective = "dpo"'))
        proof = measure(run, tmp_path / f"{name}-proof")
        found[name] = (proof.rows[0], proof.greedy[0])
        trained = find_trained(run)
        assert trained.adapter is not None
        result = compare_plain(proof, tiny_model_dir, trained.adapter, quiet)
        assert result["max_delta"] < 1e-4
        assert result["prompts_equal"]
        assert bool(proof.rows[0].prompt_ids) == (name != "tokens")
        assert (result["greedy_equal"], result["greedy_rows"]) == ((1, 1) if name == "dpo" else (None, 0))
    assert found["text"][0].text == "the ticket of area 7"
    assert found["tokens"][0].positions == [1, 2]
    assert found["dpo"][1], "the prompt of a pair is answered"


def test_weights_that_were_trained_are_measured(tmp_path: Path, tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 3))
    run.config_path.write_text(run.config_path.read_text().replace('name = "lora"', 'name = "full"'))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3.0)
    model.save_pretrained(run.model_path)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(run.model_path)
    proof = measure(run, tmp_path / "proof", 2)
    assert proof.logits("base") is None
    same = compare_plain(proof, run.model_path, None, quiet)
    assert same["max_delta"] < 1e-4
    other = compare_plain(proof, tiny_model_dir, None, quiet)
    assert other["max_delta"] > 0.01
    (run.model_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"transformers cannot load .*model: "):
        compare_plain(proof, run.model_path, None, quiet)


def test_what_does_not_fit_in_fp32_is_measured_as_it_was_trained(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 2), method="qlora")
    run.config_path.write_text(run.config_path.read_text().replace('precision = "fp32"', 'precision = "bf16"'))
    monkeypatch.setattr(reference, "memory", lambda: (0, 1000))
    proof = measure(run, tmp_path / "proof", 2)
    assert proof.arithmetic == "bf16"
    assert proof.logits("plain") is None, "nor does the base in 16 bits"
    trained = proof.logits("trained")
    assert trained is not None
    assert np.isfinite(trained.read(0, sum(len(row.positions) for row in proof.rows))).all()
