"""Conversion of LoRA adapters to GGUF, as a job.

llama.cpp adds ``alpha / rank * B A x`` to a product, with one ``alpha`` for all layers. The order of a weight's rows in
llama.cpp's file is found through its converter: given a weight whose numbers are their own places, its output is the
order for the rows of ``B``.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import UserError
from core.export.plan import CONVERTING_ADAPTER
from core.jobs.process import Answers
from core.models.description import text_name
from core.text import one_line
from core.worker.export.gguf.convert import import_converter, open_model

Array = npt.NDArray[np.float32]
_MERGED = "Export merged, where it is part of the weights."
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = re.compile(r"^base_model\.model\.(?P<module>.+?)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(?:\.weight)?$")
#: PEFT saves an adapted embedding itself too.
_UNCHANGED = ".base_layer.weight"
#: Most rows and columns, whose numbers must be exact in 32 bits.
_MOST_PLACES = 1 << 24


@dataclass(frozen=True)
class Pair:
    """The two factors of a module, which add ``up @ down``, times ``alpha / rank``.

    Args:
        down: ``(rank, inputs)``.
        up: ``(outputs, rank)``.
    """

    down: Array
    up: Array


def convert_adapter(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Write an adapter as GGUF.

    Args:
        job: ``converter``, ``adapter``, ``base`` and ``target`` (paths).
        answers: Receives the progress.

    Returns:
        Nothing beside the file.

    Raises:
        UserError: If the adapter has unsupported parts.
    """
    adapter, target = Path(job["adapter"]), Path(job["target"])
    config = json.loads((adapter / _CONFIG).read_text(encoding="utf-8"))
    refuse_unknown(config)
    answers.progress("importing the converter")
    gguf = import_converter(job["converter"])
    import torch

    alpha, pairs = read_pairs(adapter / _WEIGHTS, config)
    with torch.inference_mode():
        instance = open_model(Path(job["base"]), target, "ALL_F32")
        writer = gguf.GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[instance.model_arch])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for done, (module, pair) in enumerate(sorted(pairs.items())):
            answers.progress(CONVERTING_ADAPTER, done, len(pairs))
            for name, part in _placed(instance, module, pair, torch).items():
                writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(part.down))
                writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(part.up))
    writer.write_header_to_file(path=target)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {}


def refuse_unknown(config: dict[str, Any]) -> None:
    """Reject an adapter that is more than pairs of factors.

    Args:
        config: The content of ``adapter_config.json``.

    Raises:
        UserError: If so; it names the part.
    """
    if config.get("peft_type") != "LORA":
        kind = one_line(str(config.get("peft_type")), 40)
        raise UserError(f"The adapter is of the kind {kind}, and a GGUF file can only have LoRA.", _MERGED)
    parts = {
        "use_dora": "DoRA's magnitudes",
        "modules_to_save": "whole modules (modules_to_save)",
        "trainable_token_indices": "trained tokens (trainable_token_indices)",
        "target_parameters": "adapters on parameters (target_parameters)",
        "lora_bias": "biases (lora_bias)",
        "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
        "alora_invocation_tokens": "invocation tokens (aLoRA)",
    }
    # Linear layers that PEFT would take for experts are saved as parameters; they are ordinary pairs.
    named = [name for name in config.get("target_parameters") or () if not str(name).endswith("_proj.weight")]
    found = [title for key, title in parts.items() if (named if key == "target_parameters" else config.get(key))]
    if config.get("bias", "none") != "none":
        found.append("biases")
    if found:
        raise UserError(f"The adapter has {found[0]}, which an adapter in a GGUF file cannot have.", _MERGED)


def read_pairs(weights: Path, config: dict[str, Any]) -> tuple[float, dict[str, Pair]]:
    """The ``alpha`` of an adapter, and the factors of its modules, scaled for it.

    Ranks and scales of single modules (``rank_pattern``, ``alpha_pattern``) and rsLoRA, which divides by the root of
    the rank, become part of the factors and of ``alpha``.

    Args:
        weights: The safetensors file.
        config: The content of ``adapter_config.json``.

    Raises:
        UserError: If it has tensors that are not factors.
    """
    from safetensors import safe_open

    factors: dict[str, dict[str, Array]] = {}
    with safe_open(str(weights), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name.endswith(_UNCHANGED):
                continue
            match = _NAME.match(name)
            if match is None:
                raise UserError(
                    f"The adapter has {one_line(name, 120)}, which an adapter in a GGUF file cannot have.", _MERGED
                )
            tensor = file.get_tensor(name).float().numpy()
            # An embedding's first factor is (rank, tokens) and is looked up by token.
            is_looked_up = match["embedding"] is not None and match["part"] == "A"
            # Only the base's text part is in the file, under its own names.
            module = text_name(f"{match['module']}.").removesuffix(".")
            factors.setdefault(module, {})[match["part"]] = tensor.T if is_looked_up else tensor
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    is_rank_stabilized = bool(config.get("use_rslora"))
    written = alpha * math.sqrt(rank) if is_rank_stabilized else alpha
    pairs = {}
    for module, found in factors.items():
        if set(found) != {"A", "B"}:
            raise UserError(f"The adapter has half of what it adds to {one_line(module, 120)}.", "Export it again.")
        own_rank = found["B"].shape[1]
        own_alpha = float(_pattern(config.get("alpha_pattern"), module, alpha))
        own = own_alpha / (math.sqrt(own_rank) if is_rank_stabilized else own_rank)
        ratio = own / (written / own_rank)
        pairs[module] = Pair(found["A"], found["B"] if math.isclose(ratio, 1.0) else found["B"] * np.float32(ratio))
    return written, pairs


def _pattern(patterns: Any, module: str, default: float) -> float:
    """The value for a module by its name's ending; keys are regular expressions, as in PEFT."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


def _placed(instance: Any, module: str, pair: Pair, torch: Any) -> dict[str, Pair]:
    """The factors by the names of weights in llama.cpp's file; a module may have several."""
    name = f"{module}.weight"
    if (item := type(instance).filter_tensors((name, lambda: None))) is None:
        raise UserError(f"The adapter changes {one_line(module, 120)}, which is not in a GGUF file.", _MERGED)
    name = item[0]
    if module.endswith("embed_tokens"):
        # Looked up, so (tokens, rank): the rows keep their order.
        return {instance.map_tensor_name(name): pair}
    outputs, inputs = pair.up.shape[0], pair.down.shape[1]
    if max(outputs, inputs) > _MOST_PLACES:
        raise UserError(f"The adapter's {one_line(module, 120)} is too large.", _MERGED)
    number = next((int(part) for part in name.split(".") if part.isdecimal()), None)
    rows = torch.arange(outputs, dtype=torch.float32)[:, None].expand(outputs, inputs)
    columns = torch.arange(inputs, dtype=torch.float32).expand(outputs, inputs)
    all_rows: list[int] = []
    moved = dict(instance.modify_tensors(rows.clone(), name, number))
    kept = dict(instance.modify_tensors(columns.clone(), name, number))
    found: dict[str, Pair] = {}
    for target, places in moved.items():
        order = _order(places.numpy(), kept[target].numpy(), inputs)
        if order is None or not target.endswith(".weight"):
            raise _not_a_move(module)
        found[target] = Pair(pair.down, pair.up[order])
        all_rows += order.tolist()
    if sorted(all_rows) != list(range(outputs)):
        raise _not_a_move(module)
    return found


def _order(rows: npt.NDArray[Any], columns: npt.NDArray[Any], inputs: int) -> npt.NDArray[np.int64] | None:
    """The rows that a weight is made of.

    Args:
        rows: The converter's output for a weight whose numbers are their rows.
        columns: The same for their columns.
        inputs: Number of columns.

    Returns:
        The rows in order; None if the weight is not made of whole rows.
    """
    if rows.ndim != 2 or rows.shape[1] != inputs or not (columns == np.arange(inputs)).all():
        return None
    order = np.rint(rows[:, 0]).astype(np.int64)
    return order if (rows == order[:, None]).all() else None


def _not_a_move(module: str) -> UserError:
    return UserError(
        f"llama.cpp's file has the weight of {one_line(module, 120)} in another form than its rows.", _MERGED
    )
