"""Training of models with recurrent layers: no row runs on into the next, recomputed activations give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.config import targets
from core.config.schema import Config, MethodSection
from core.errors import UserError
from core.worker.data.batches import collate
from core.worker.data.encode import TokenizedRow
from core.worker.fused.install import Fused
from core.worker.loss.loss import SupervisedLoss
from core.worker.model.adapters import attach_adapters
from core.worker.model.model import LoadedModel, set_gradient_checkpointing, trainable_parameters
from core.worker.model.quantizer import FourBitQuantizer, four_bit_config
from core.worker.model.recurrent import describe_kind, recurrent_kinds
from core.worker.setup.ready_model import fuse_layers
from tests.cases import cases
from tests.core.worker.hybrids import HYBRIDS, make_hybrid
from tests.core.worker.setup.test_fast_paths import config, rows, settle
from tests.families.tiny import FAMILIES
from tests.short_list import long_but

#: Families that people fine-tune, and a family whose layers have both attention and a state.
TUNED = (*(name for name in HYBRIDS if name in FAMILIES), "falcon_h1", "nemotron_h")
#: With gated deltas, with convolutions, and with attention and a state in one layer.
FEW = ("qwen3_5", "lfm2", "falcon_h1")


def ready(name: str, **train: Any) -> tuple[LoadedModel, Config, Fused]:
    """A model of a family with adapters on its attention and its states, fused."""
    model = make_hybrid(name)
    model.requires_grad_(False)
    wanted = config(train=train)
    names = ["q_proj", "o_proj", "in_proj", "in_proj_qkv", "output_linear"]
    method = MethodSection(name="lora", rank=4, target_modules=names)
    model = attach_adapters(model, method, seed=0)
    for parameter in trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.05)
    loaded = LoadedModel(model, None, torch.device("cpu"), torch.float32)
    return loaded, wanted, fuse_layers(wanted, loaded)


@pytest.mark.parametrize("name", long_but(FEW, HYBRIDS))
def test_packing_is_refused_with_the_reason_and_beginnings_are_not_shared(name: str) -> None:
    loaded, wanted, fused = ready(name, packing=True)
    kinds = recurrent_kinds(loaded.model)
    with pytest.raises(UserError, match="would not be kept apart") as refusal:
        settle(wanted, loaded, fused)
    if fused.attention:
        reason = f"its {describe_kind(kinds[0])} carry a state from token to token, which would run on into the next"
        assert f"would not be kept apart: {reason} row." in refusal.value.message
    assert "train.packing = false" in refusal.value.hint
    loaded, wanted, fused = ready(name, share_prefix=True)
    packing = settle(wanted, loaded, fused).packing
    assert (packing.share, packing.pack) == (False, False)


@pytest.mark.parametrize("name", long_but(FEW, TUNED))
def test_rows_in_a_batch_give_the_same_result_as_alone_and_with_activations_recomputed(name: str) -> None:
    """Whatever they are padded with and however far."""
    loaded, wanted, fused = ready(name)
    loss = settle(wanted, loaded, fused)
    loaded.model.train()
    together, gradient = gradients(loaded, loss, rows(4))
    alone = [gradients(loaded, loss, [row]) for row in rows(4)]
    assert together == pytest.approx(sum(value for value, _ in alone), rel=1e-5)
    torch.testing.assert_close(gradient, sum(part for _, part in alone), rtol=1e-3, atol=1e-3)
    set_gradient_checkpointing(loaded.model, True)
    again, recomputed = gradients(loaded, loss, rows(4))
    assert again == pytest.approx(together, rel=1e-6)
    torch.testing.assert_close(recomputed, gradient, rtol=1e-6, atol=1e-6)


def gradients(loaded: LoadedModel, loss: SupervisedLoss, chosen: list[TokenizedRow]) -> tuple[float, torch.Tensor]:
    summed = loss(*collate(chosen, 0, loaded.device))
    parameters = trainable_parameters(loaded.model)
    parts = torch.autograd.grad(summed, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
    return float(summed.detach()), torch.cat([part.flatten() for part in flat])


@cases(("installed", "name"), [(True, "granitemoehybrid"), (False, "granitemoehybrid"), (True, "lfm2")])
def test_layers_read_past_by_kernels_stay_plain(installed: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "has_mamba_kernels", lambda: installed)
    model = make_hybrid(name)
    kept = FourBitQuantizer(four_bit_config(torch.float32), pre_quantized=False).get_modules_to_not_convert(model)
    is_read = installed and name == "granitemoehybrid"
    assert ("model.layers.0.mamba.out_proj" in kept) is is_read
    adapted = attach_adapters(model, MethodSection(name="lora", rank=2), seed=0)
    keys = [key for key, _ in adapted.named_parameters() if "lora_" in key]
    layers = {key.partition(".lora_")[0].partition("layers.0.")[2] for key in keys}
    mixer = {"granitemoehybrid": "mamba", "lfm2": "conv"}[name]
    assert f"{mixer}.in_proj" in layers
    assert (f"{mixer}.out_proj" in layers) is not is_read


@cases("name", ["falcon_h1", "nemotron_h", "mamba2"])
def test_all_linear_skips_layers_that_peft_refuses(name: str) -> None:
    adapted = attach_adapters(make_hybrid(name), MethodSection(name="lora", rank=2), seed=0)
    keys = [key for key, _ in adapted.named_parameters() if "lora_" in key]
    assert any("in_proj" in key for key in keys)
    assert not any("out_proj" in key for key in keys)
    with pytest.raises(UserError, match="Module 'out_proj' is incompatible with Mamba"):
        attach_adapters(make_hybrid(name), MethodSection(name="lora", rank=2, target_modules=["out_proj"]), seed=0)
