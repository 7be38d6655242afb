"""What is looked at in a loaded model of a family; each function runs in a process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.config.schema import Config
from core.errors import UserError

#: What of a model may be fused.
PARTS = ("adapters", "networks", "norms", "rotation", "attention")


@dataclass(frozen=True)
class Weights:
    """The weights of a loaded base."""

    parameters: int
    """Numbers in them, those of 4-bit tensors counted as before; those that are saved though never trained count."""
    bytes: int
    """Of the tensors, with the tables of 4-bit ones."""
    in_4bit: tuple[str, ...]
    """Names of the layers and tensors in 4 bits."""
    linear_16bit: tuple[str, ...]
    """Names of the linear layers that are not, the head left out."""
    experts_16bit: tuple[str, ...]
    """Names of the experts' tensors that are not."""
    towers: tuple[str, ...]
    """Names of the parts for images and sound."""
    differs: float
    """The largest difference of its logits from those of transformers' own model, as a share of the largest logit."""
    alike: float
    """The cosine of the two."""


def weights(base: Path, method: str, precision: str) -> Weights:
    """Look at a base as it is loaded."""
    import bitsandbytes as bnb
    import torch

    from core.worker.model.expert_weights import ExpertsParams4bit
    from core.worker.model.model import load_model

    model = load_model(base, method=method, precision=precision, device="cpu").model
    parameters = size = 0
    in_4bit, experts = [], []
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        parameters += parameter.numel() if state is None else int(np.prod(state.shape))
        if state is None:
            size += parameter.numel() * parameter.element_size()
            experts += [name] if parameter.dim() == 3 and "experts" in name else []
            continue
        in_4bit.append(name)
        if isinstance(parameter, ExpertsParams4bit):
            size += parameter.bytes()
            continue
        tables = (parameter, state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset)
        size += sum(table.numel() * table.element_size() for table in tables)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                parameters += buffer.numel()
                size += buffer.numel() * buffer.element_size()
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not isinstance(module, bnb.nn.Linear4bit) and module is not head
    ]
    towers = [name for name, _ in model.named_modules() if name.rpartition(".")[2].endswith(("tower", "visual"))]
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.no_grad():
        found, wanted = model(input_ids=ids).logits.float(), _whole(base)(input_ids=ids).logits
    differs = float((found - wanted).abs().max() / wanted.abs().max())
    alike = float(torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0))
    return Weights(parameters, size, tuple(in_4bit), tuple(linear), tuple(experts), tuple(towers), differs, alike)


def _whole(base: Path) -> Any:
    """The whole model in fp32, as transformers loads it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(AutoConfig.from_pretrained(base), "vision_config")
    loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return loader.from_pretrained(base, dtype=torch.float32)


@dataclass(frozen=True)
class Pass:
    """A pass over some rows."""

    loss: float
    gradients: np.ndarray[Any, np.dtype[np.float32]]
    """Of all adapters, one behind the other."""
    fused: tuple[str, ...]
    """What of the layers is fused."""
    shared: bool
    """Whether the beginning that the rows have in common was computed once."""
    refused: str
    """Why packing is refused; empty where it is not."""


def gradients(base: Path, method: dict[str, Any], train: dict[str, Any]) -> Pass:
    """Loss and gradients of a batch in fp32, with random adapters.

    Args:
        base: The model.
        method: Options of the section ``method``.
        train: Options of the section ``train``; where ``packing`` is refused, it is left out.
    """
    import torch

    from core.worker.data.batches import collate
    from core.worker.loss.loss import SupervisedLoss
    from core.worker.model.adapters import attach_adapters
    from core.worker.model.model import load_model, trainable_parameters
    from core.worker.setup.fast_paths import choose_packing, fuse_layers, wants_packing
    from core.worker.setup.self_check import check_model

    config = Config.model_validate({"data": {"train": "rows.jsonl"}, "method": {"rank": 4, **method}, "train": train})
    loaded = load_model(base, method=config.method.name, precision="fp32", device="cpu", for_training=True)
    loaded = replace(loaded, model=attach_adapters(loaded.model, config.method, seed=0))
    torch.manual_seed(0)
    for parameter in trainable_parameters(loaded.model):
        torch.nn.init.normal_(parameter, std=0.02)
    fused = fuse_layers(config, loaded)
    short, long = _rows(10, (4, 17, 9, 12)), _rows(20, (9, 24, 15, 30))
    rows, refused = short + long, ""
    packed = wants_packing(config, fused)
    check = check_model(loaded, SupervisedLoss(loaded.model), rows, contextlib.nullcontext, laid_out=packed)
    try:
        packing = choose_packing(config, loaded, rows, fused, check)
    except UserError as error:
        refused = error.message
        plainly = config.model_copy(update={"train": config.train.model_copy(update={"packing": False})})
        packing = choose_packing(plainly, loaded, rows, fused, check)
    sums = SupervisedLoss(loaded.model, packing)
    # Rows within the windows of the tiny models lie one behind another; longer ones are padded where there are windows.
    loss = sums(*collate(short, 0, loaded.device)) + sums(*collate(long, 0, loaded.device))
    found = torch.autograd.grad(loss, trainable_parameters(loaded.model), allow_unused=True)
    used = [gradient for gradient in found if gradient is not None]
    assert len(used) == len(found), "an adapter has no part in the loss"
    parts = zip(PARTS, (fused.lora, fused.gated, fused.norms, fused.rotary, fused.attention), strict=True)
    return Pass(
        float(loss.detach()),
        torch.cat([gradient.flatten() for gradient in used]).numpy(),
        tuple(name for name, is_there in parts if is_there),
        packing.share,
        refused,
    )


def _rows(common: int, lengths: Sequence[int]) -> list[Any]:
    """Rows that begin with the same tokens.

    Args:
        common: Number of these.
        lengths: Numbers of those that follow in each row.
    """
    from core.worker.data.encode import TokenizedRow

    random = np.random.default_rng(0)
    made = []
    for length in lengths:
        ids = np.concatenate([np.arange(30, 30 + common), random.integers(5, 300, length)]).astype(np.int32)
        supervised = np.zeros(len(ids), dtype=np.bool_)
        supervised[common + 2 :] = True
        made.append(TokenizedRow(ids, supervised))
    return made
