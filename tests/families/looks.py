"""Checks of a loaded model of a family; each function runs in a separate process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.config.schema import Config
from core.errors import UserError

#: Parts of a model that may be fused.
PARTS = ("adapters", "networks", "norms", "rotation", "attention")


@dataclass(frozen=True)
class Weights:
    """The weights of a loaded base."""

    parameters: int
    """Numbers in them, those of 4-bit tensors counted as before; those that are saved though never trained count."""
    bytes: int
    """Of the tensors, with the tables of 4-bit ones."""
    in_4bit: dict[str, tuple[int, ...]]
    """Shapes of the tensors in 4 bits, as they were before, by their names."""
    linear_16bit: tuple[str, ...]
    """Names of the linear layers that are not, the head left out."""
    experts_16bit: tuple[str, ...]
    """Names of the experts' tensors that are not."""
    towers: tuple[str, ...]
    """Names of the parts for images and sound."""


def weights(base: Path, method: str, precision: str) -> Weights:
    """Look at a base as it is loaded."""
    from core.worker.model.model import load_model

    return _look(load_model(base, method=method, precision=precision, device="cpu").model)


def _look(model: Any) -> Weights:
    import bitsandbytes as bnb
    import torch

    parameters = size = 0
    in_4bit, experts = {}, []
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        shape = tuple(parameter.shape if state is None else state.shape)
        parameters += int(np.prod(shape))
        size += _bytes(parameter)
        if state is not None:
            in_4bit[name] = shape
        elif parameter.dim() == 3 and "experts" in name:
            experts.append(name)
    for _, buffer in _saved_buffers(model):
        parameters += buffer.numel()
        size += buffer.numel() * buffer.element_size()
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not isinstance(module, bnb.nn.Linear4bit) and module is not head
    ]
    towers = [name for name, _ in model.named_modules() if name.rpartition(".")[2].endswith(("tower", "visual"))]
    return Weights(parameters, size, in_4bit, tuple(linear), tuple(experts), tuple(towers))


def _bytes(parameter: Any) -> int:
    """The bytes of a parameter, with the tables of one in 4 bits."""
    from core.worker.model.experts import ExpertsParams4bit

    if isinstance(parameter, ExpertsParams4bit):
        return parameter.bytes()
    tables = [parameter]
    if (state := getattr(parameter, "quant_state", None)) is not None:
        tables += [state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset]
    return sum(table.numel() * table.element_size() for table in tables)


def _saved_buffers(model: Any) -> Iterator[tuple[str, Any]]:
    """The buffers that a checkpoint has, by their names."""
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", buffer


@dataclass(frozen=True)
class Compared:
    """The weights of a base in fp32, and differences from the model that transformers loads."""

    weights: Weights
    changed: tuple[str, ...]
    """Names of the tensors that are not those of the file, bit for bit; those in 4 bits are to be what bitsandbytes
    restores after it has quantized the file's."""
    differs: float
    """The largest difference of its logits from transformers' own model, as a share of the largest logit."""


def compared(base: Path, method: str) -> Compared:
    """Compare a base as it is loaded with the whole model as transformers loads it."""
    import torch

    from core.worker.model.model import load_model

    whole = _whole(base)
    wanted = dict([*whole.named_parameters(), *_saved_buffers(whole)])
    # Before the model is loaded, which has bitsandbytes quantize and restore in a way of our own.
    matrices = {name: value for name, value in wanted.items() if method == "qlora" and _is_matrix(name, value)}
    restored = {name: _restored(value) for name, value in matrices.items()}
    model = load_model(base, method=method, precision="fp32", device="cpu").model
    changed = []
    for name, found in [*model.named_parameters(), *_saved_buffers(model)]:
        # The text part alone has other names than it has in the whole model.
        key = name if name in wanted else name.replace("model.", "model.language_model.", 1)
        is_4bit = hasattr(found, "quant_state")
        value = (restored if is_4bit else wanted)[key]
        if not torch.equal(_dequantized(found) if is_4bit else found, value):
            changed.append(name)
    ids = torch.arange(3, 63).reshape(2, 30)
    with torch.no_grad():
        logits, expected = model(input_ids=ids).logits, whole(input_ids=ids).logits
    differs = float((logits - expected).abs().max() / expected.abs().max())
    return Compared(_look(model), tuple(changed), differs)


def _is_matrix(name: str, value: Any) -> bool:
    """True for a matrix, or the stacked matrices of experts."""
    return value.dim() == 2 or (value.dim() == 3 and "experts" in name)


def _restored(value: Any) -> Any:
    """A matrix, or each expert's, after NF4 with double quantization."""
    import bitsandbytes as bnb
    import torch

    if value.dim() == 3:
        return torch.stack([_restored(matrix) for matrix in value])
    packed, state = bnb.functional.quantize_4bit(value.detach(), quant_type="nf4", compress_statistics=True)
    return bnb.functional.dequantize_4bit(packed, state)


def _dequantized(parameter: Any) -> Any:
    """The dequantized matrix of a 4-bit parameter, or of all experts."""
    import bitsandbytes as bnb

    from core.worker.model.experts import ExpertsParams4bit, dequantized

    if isinstance(parameter, ExpertsParams4bit):
        return dequantized(parameter)
    return bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state)


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
    """Fused parts of the layers."""
    shared: bool
    """True if the common prefix of the rows was computed once."""
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
    from core.worker.setup.objective import check_model, choose_packing, wants_packing
    from core.worker.setup.ready_model import fuse_layers

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
        packing = choose_packing(config.with_options(train={"packing": False}), loaded, rows, fused, check)
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
        lengths: Lengths of the rows after it.
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
