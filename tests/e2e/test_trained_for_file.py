"""The file that a run was trained for has the weights that it was trained with, and its loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.chat.session import Answer, ChatSession, GenerationSettings, open_session, session_of
from core.export.job import export_job
from core.export.plan import plan_export
from core.export.request import ExportRequest
from core.runs.catalog.trained import find_trained
from core.runs.record.events import EvalEvent
from core.runs.record.store import Run
from tests.core.worker.export.gguf.apart import lines_of
from tests.forking import Forks
from tests.tiny_model import write_tiny_model

from .workers import Workers, only

pytest.importorskip("llama_cpp_py_sync")


def wide_model(directory: Path) -> Path:
    """A model whose rows K-quants take whole, with a head of its own."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    write_tiny_model(directory)
    config = AutoConfig.from_pretrained(directory)
    config.hidden_size, config.intermediate_size, config.head_dim, config.tie_word_embeddings = 256, 512, 64, False
    torch.manual_seed(1)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


def trained_values(run: Run, base: Path) -> dict[str, Any]:
    """The values that the trainer computed with in the end, by the names of transformers."""
    import torch
    from peft.tuners.lora import LoraLayer

    from core.worker.fused.frozen_weight import FrozenWeight
    from core.worker.fused.ggml_quant import fake_quantize, ggml_type
    from core.worker.model.model import load_model

    config = run.config()
    loaded = load_model(
        base, method=config.method.name, precision=config.train.precision, device="cpu", adapter=run.adapter_path
    )
    causal, found = loaded.model.get_base_model(), {}
    for name, module in causal.named_modules():
        if isinstance(module, LoraLayer):
            weight = FrozenWeight(module.get_base_layer())
            weight.train_for(ggml_type(str(config.method.train_for)))
            down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
            found[name] = weight.merged(down, up, float(module.scaling["default"]), torch.float32).numpy()
    found["model.embed_tokens"] = fake_quantize(causal.get_input_embeddings().weight, "Q8_0").numpy()
    if not causal.config.tie_word_embeddings:
        found["lm_head"] = fake_quantize(causal.get_output_embeddings().weight, "Q8_0").numpy()
    heads = causal.config.num_attention_heads, causal.config.num_key_value_heads
    for name, values in found.items():
        # llama.cpp rotates other pairs of features.
        count = heads[0] if name.endswith("q_proj") else heads[1] if name.endswith("k_proj") else None
        if count is not None:
            shape = values.shape
            found[name] = values.reshape(count, 2, shape[0] // count // 2, shape[1]).swapaxes(1, 2).reshape(shape)
    return found


def held_out_loss(forks: Forks, run: Run, base: Path, file: Path) -> float:
    """Loss of the file on the held-out rows, computed by llama.cpp."""
    from core.worker.data.dataset import Loader
    from core.worker.export.verify.reference import make_encoder
    from core.worker.model.model import load_tokenizer

    config, tokenizer = run.config(), load_tokenizer(base)
    encoder = make_encoder(config, base, tokenizer, [tokenizer.eos_token_id], None, run.created)
    loaded = Loader(config, encoder, vocabulary=len(tokenizer), progress=lambda _: None).load(str(config.data.eval))
    rows = [[row.input_ids.tolist(), row.supervised.nonzero()[0].tolist()] for row in loaded.rows]
    (loss,) = lines_of(forks, "held_out_loss", str(file), standard_input=json.dumps(rows), seconds=120)
    return float(loss)


def answer_of(session: ChatSession) -> str:
    """The greedy answer in a chat."""
    settings = GenerationSettings(max_new_tokens=6, temperature=0.0)
    try:
        *_, last = session.generate([{"role": "user", "content": "ticket login refund"}], "tuned", settings)
    finally:
        session.close()
    assert isinstance(last, Answer)
    assert last.tokens
    return last.raw


@pytest.mark.parametrize(
    ("kind", "method", "precision", "wide"),
    [
        ("q4_0", "qlora", "fp32", False),
        pytest.param("q4_0", "lora", "fp32", True, marks=pytest.mark.long),
        pytest.param("q8_0", "qlora", "bf16", False, marks=pytest.mark.long),
    ],
)
def test_the_file_has_the_very_weights_that_were_trained(
    kind: str, method: str, precision: str, wide: bool, tmp_path: Path, converter: Path, forks: Forks
) -> None:
    import gguf

    base = wide_model(tmp_path / "base") if wide else write_tiny_model(tmp_path / "base")
    workers = Workers(tmp_path, base)
    options: dict[str, dict[str, Any]] = {
        "method": {"name": method, "dropout": 0.0, "train_for": kind},
        "train": {"max_steps": 9, "precision": precision},
        "eval": {"exact_match": False},
    }
    try:
        run = workers.finished("file", **options)
    finally:
        workers.close()
    result = export_job(plan_export(ExportRequest(run.path, "gguf", out=tmp_path / "export"))).run()
    assert (result.quant, result.verified, result.notes) == (kind.upper(), True, ())
    assert result.agreement is not None
    assert result.agreement.mean_kl is not None
    # llama.cpp rounds activations to 8 bit before it multiplies them by quantized weights.
    assert result.agreement.mean_kl < 1e-4
    file = next(tmp_path.glob("export/*.gguf"))
    values = trained_values(run, base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors if len(tensor.shape) > 1}
    assert len(found) == len(values)
    for name, wanted in values.items():
        place = names.get_name(name)
        assert place is not None
        tensor = found[f"{place}.weight"]
        assert tensor.tensor_type.name == ("Q8_0" if name in ("model.embed_tokens", "lm_head") else kind.upper())
        assert np.array_equal(tensor.data, gguf.quantize(wanted, tensor.tensor_type)), name
        assert np.array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), wanted), name
    measured = only(EvalEvent, run)[-1]
    if precision == "fp32":
        assert held_out_loss(forks, run, base, file) == pytest.approx(measured.loss, abs=1e-3)
    if wide:
        assert answer_of(session_of(find_trained(run))) == answer_of(open_session(file))
