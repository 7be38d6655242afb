"""The measurement against whole models, loaded plainly."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from core.errors import UserError
from core.models.tensors import read_weights
from core.quantization.result import FINE, QuantizationCost
from core.worker.data.encode import TokenizedRow
from core.worker.model.model import load_model
from core.worker.quantization import job, measure
from core.worker.quantization.job import needed_bytes, refuse_beside_run
from core.worker.quantization.layers import LayeredModel, held_bytes
from core.worker.quantization.measure import Settings, measure_cost
from core.worker.quantization.sample import Sample, choose_sample
from tests.core.worker.crowded import end_run, run_on_cpu
from tests.core.worker.quantization.hurt import write_hurt, write_rows
from tests.families.tiny import FAMILIES, write_family
from tests.packers import quantize_checkpoint
from tests.progress import quiet
from tests.short_list import long_but

SETTINGS = Settings("fp32", "cpu")
#: Families that 'make test' goes through.
FIRST = ("llama", "qwen3_5", "gpt_oss")


def cost_of(base: Path, rows: list[TokenizedRow], **more: Any) -> QuantizationCost:
    return measure_cost(base, Sample(rows, "held_out"), SETTINGS, quiet, **more)


def plainly(base: Path, rows: list[TokenizedRow], keep: Sequence[str] = ()) -> tuple[float, float, float, float]:
    """Loss in 16 bit and in 4 bits, divergence, and the share of places with the same token, of whole models."""
    models = [
        load_model(base, method=method, precision="fp32", device="cpu", keep_16bit=keep).model.eval()
        for method in ("lora", "qlora")
    ]
    found = []
    for row in rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        places = torch.from_numpy(row.supervised[1:]).nonzero()[:, 0]
        with torch.no_grad():
            plain, coarse = (
                model(input_ids=ids, use_cache=False).logits[0][places].log_softmax(-1) for model in models
            )
        targets = ids[0][places + 1][:, None]
        found.append(
            torch.stack(
                [
                    -plain.gather(1, targets)[:, 0],
                    -coarse.gather(1, targets)[:, 0],
                    (plain.exp() * (plain - coarse)).sum(-1),
                    (plain.argmax(-1) == coarse.argmax(-1)).float(),
                ]
            )
        )
    mean = torch.cat(found, dim=1).mean(dim=1)
    return tuple(mean.tolist())


@pytest.mark.parametrize("family", long_but(FIRST, FAMILIES))
def test_losses_and_divergence_equal_those_of_whole_models(family: str, tmp_path: Path) -> None:
    base = write_family(family, tmp_path / family)
    rows = write_rows(40, 23, 33)
    cost = cost_of(base, rows)
    loss, coarse, kl, same = plainly(base, rows)
    assert cost.loss_16bit == pytest.approx(loss, abs=1e-5)
    assert cost.whole.loss == pytest.approx(coarse, abs=1e-5)
    assert cost.whole.kl == pytest.approx(kl, abs=1e-6)
    assert cost.whole.kl > 1e-6
    assert cost.whole.top1 == pytest.approx(same, abs=1e-6)
    assert cost.tokens == sum(int(row.supervised.sum()) for row in rows)
    assert all(layer.bytes > 0 for layer in cost.layers)


def test_the_cost_of_a_layer_and_what_keeping_some_brings_are_true(tmp_path: Path) -> None:
    base = write_hurt(tmp_path / "hurt")
    rows = write_rows(40, 23, 33)
    cost = cost_of(base, rows)
    assert cost.whole.kl > FINE
    names = [layer.name for layer in cost.layers]
    assert names == [f"model.layers.{place}" for place in range(4)]
    for place, layer in enumerate(cost.layers):
        others = [f"{name}.*" for name in names if name != names[place]]
        assert layer.kl == pytest.approx(plainly(base, rows, others)[2], rel=1e-4, abs=1e-6)
    assert max(cost.layers, key=lambda layer: layer.kl).name == "model.layers.1"
    assert cost.kept is not None
    assert 1 in cost.kept.layers
    assert cost.kept.patterns == tuple(f"{names[place]}.*" for place in cost.kept.layers)
    assert cost.kept.figures.kl < cost.whole.kl
    found = plainly(base, rows, cost.kept.patterns)
    assert cost.kept.figures.kl == pytest.approx(found[2], rel=1e-4)
    assert cost.kept.figures.loss == pytest.approx(found[1], abs=1e-5)
    kept = cost_of(base, rows, free_bytes=0)
    assert (kept.kept, kept.whole) == (None, cost.whole)
    again = QuantizationCost.from_dict(cost.to_dict())
    assert again == cost


def test_layers_of_the_configuration_are_in_16_bit_already(tmp_path: Path) -> None:
    base = write_hurt(tmp_path / "hurt")
    rows = write_rows(40, 23)
    keep = ("layers.1.*",)
    cost = measure_cost(base, Sample(rows, "eval"), Settings("fp32", "cpu", keep), quiet)
    assert cost.whole.kl == pytest.approx(plainly(base, rows, keep)[2], rel=1e-4)
    assert (cost.layers[1].kl, cost.layers[1].bytes) == (0, 0)
    assert cost.kept is None or 1 not in cost.kept.layers
    assert cost.keep_16bit == keep


@pytest.mark.long
def test_never_more_than_one_layer_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_hurt(tmp_path / "hurt")
    read = LayeredModel.materialize
    layers: list[weakref.ref[Any]] = []
    sizes: list[int] = []

    def counted(model: LayeredModel, index: int) -> Any:
        assert not any(each() is not None for each in layers), "the layer before is dropped first"
        layer = read(model, index)
        layers.append(weakref.ref(layer))
        sizes.append(held_bytes(layer))
        outside = held_bytes(model.loaded.model)
        # Shared by both models: embeddings, norms and head, once.
        gc.collect()
        alive = {
            each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
            for each in gc.get_objects()
            if isinstance(each, torch.nn.Parameter) and not each.is_meta
        }
        known.append(sum(alive.values()) - outside - sizes[-1])
        return layer

    gc.collect()
    before = sum(each.nbytes for each in gc.get_objects() if isinstance(each, torch.nn.Parameter) and not each.is_meta)
    known: list[int] = []
    monkeypatch.setattr(LayeredModel, "materialize", counted)
    cost = cost_of(base, write_rows(40, 23))
    assert cost.kept is not None
    # Two in the first pass, and one or both in each pass after that.
    assert len(layers) >= 3 * len(cost.layers)
    assert max(known) <= before + max(sizes) // 100


def test_where_streams_cannot_go_side_by_side_each_goes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = write_family("llama", tmp_path / "llama"), write_rows(40, 23)
    together = cost_of(base, rows)
    call = LlamaDecoderLayer.__call__

    def scaled(layer: Any, *args: Any, **kwargs: Any) -> Any:
        # A layer does not see changes of the hidden states between two layers.
        return call(layer, *args, **kwargs) * 1.0

    monkeypatch.setattr(LlamaDecoderLayer, "__call__", scaled)
    alone = cost_of(base, rows)
    assert alone.whole.kl == pytest.approx(together.whole.kl, rel=1e-5)
    assert [layer.kl for layer in alone.layers] == pytest.approx([layer.kl for layer in together.layers], rel=1e-4)


def test_streams_that_are_too_many_go_in_several_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = write_family("smollm3", tmp_path / "smollm3"), write_rows(40, 23)
    at_once = cost_of(base, rows)
    passes: list[int] = []
    monkeypatch.setattr(measure, "STREAM_BYTES", 2 * 2 * 40 * 64 * 4)
    cost = measure_cost(
        base,
        Sample(rows, "held_out"),
        SETTINGS,
        lambda name, done, _: passes.append(done or 0) if "layer" in name else None,
    )
    assert passes.count(4) == 3, "five streams beside the reference, two at a time"
    assert (cost.whole, cost.layers) == (at_once.whole, at_once.layers)


def test_a_model_with_a_layer_missing_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = write_family("llama", tmp_path / "llama")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"has no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        cost_of(base, write_rows(20))


@pytest.mark.parametrize(("family", "name"), [("llama", "fp8"), ("gpt_oss", "mxfp4")])
def test_a_checkpoint_that_is_decoded_is_measured_as_the_model_that_it_stands_for(
    family: str, name: str, tmp_path: Path
) -> None:
    twins = quantize_checkpoint(write_family(family, tmp_path / "source"), tmp_path, name)
    rows = write_rows(40, 23)
    quantized, plain = cost_of(twins.quantized, rows), cost_of(twins.plain, rows)
    assert (quantized.loss_16bit, quantized.whole, quantized.layers) == (plain.loss_16bit, plain.whole, plain.layers)


def test_a_model_that_was_saved_in_4_bits_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "saved"
    source = write_family("llama", tmp_path / "llama")
    load_model(source, method="qlora", precision="fp32", device="cpu").model.save_pretrained(base)
    (base / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"saved was saved quantized \(bitsandbytes"):
        cost_of(base, write_rows(20))


CPU = torch.device("cpu")


def test_what_would_take_the_memory_of_a_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_family("llama", tmp_path / "llama")
    needed = needed_bytes(read_weights(base), 4)
    # Both layers, and the tensors outside them: the whole model.
    assert needed - needed_bytes({}, 4) == 4 * sum(tensor.elements for tensor in read_weights(base).values())
    run = run_on_cpu()
    monkeypatch.setattr(job, "free_bytes", lambda _: needed)
    refuse_beside_run(base, CPU, torch.float32)
    monkeypatch.setattr(job, "free_bytes", lambda _: needed - 1)
    with pytest.raises(UserError, match=f"Run {run.id} trains on the same device"):
        refuse_beside_run(base, CPU, torch.float32)
    end_run(run)
    refuse_beside_run(base, CPU, torch.float32)


def test_rows_are_spread_and_within_the_budget() -> None:
    rows = write_rows(*range(20, 120))
    sample = choose_sample(rows, 10, 10_000, "eval")
    assert [len(row) for row in sample.rows] == [20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert sample.data == "eval"
    fewer = choose_sample(rows, 10, 200, "eval")
    assert [len(row) for row in fewer.rows] == [20, 30, 40], "four of 56 tokens with padding are too many"
    assert [len(row) for row in choose_sample(rows[:3], 10, 10_000, "eval").rows] == [20, 21, 22]


def test_a_row_that_is_longer_than_the_budget_is_cut_and_one_without_a_learned_token_is_refused() -> None:
    assert [len(row) for row in choose_sample(write_rows(300), 4, 200, "training").rows] == [200]
    with pytest.raises(UserError, match="Nothing is learned in the first 100 tokens"):
        choose_sample(write_rows(300), 4, 100, "training")
