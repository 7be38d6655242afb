"""Model and adapter directory checks: whether they can be loaded without running foreign code; no heavy imports.

Nothing is loaded for it: descriptions are JSON, and so are the headers of safetensors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.architecture.architecture import Architecture, read_architecture
from core.models.description import (
    PICKLES,
    TOKENIZER_LIMIT,
    TOKENIZERS,
    as_files_are_tied,
    is_composite,
    read_description,
    read_quantization,
    refuse_foreign,
    split_names,
    text_part,
    unreadable,
    walk,
)
from core.models.installed import check_known
from core.models.tables import TABLES
from core.models.tensors import Tensor, read_decoded, read_header
from core.text import one_line

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_HINT = "Take the tokenizer that belongs to the model."


def check_tokens(config: dict[str, Any], rows: int | None, directory: Path) -> None:
    """Check that no token in use is outside the embedding.

    Unused added tokens may be outside: some models are published that way (the image token of a model without its
    vision part). Tokens of the data are checked with the data.

    Args:
        config: The content of ``config.json``.
        rows: Rows of the input embedding; None for the configuration's.
        directory: Directory of the model.

    Raises:
        UserError: If a token is outside, or a file of the tokenizer is damaged.
    """
    rows = rows or text_part(config).get("vocab_size")
    settings = read_description(directory / "tokenizer_config.json") or {}
    specials = read_description(directory / "special_tokens_map.json") or {}
    generation = read_description(directory / "generation_config.json") or {}
    backend = read_description(directory / "tokenizer.json", TOKENIZER_LIMIT)
    if not isinstance(rows, int) or rows < 1:
        return
    for source, values in (
        ("config.json", config),
        ("config.json", text_part(config)),
        ("generation_config.json", generation),
    ):
        for name, token in _special_ids(values):
            # -1 has long been written for "none".
            if token >= rows or token < -1:
                raise UserError(
                    f"{directory / source}: {name} is {token}, and the model knows the tokens 0 to {rows - 1}.",
                    "Copy the model's own file, or put the right number there.",
                )
    if backend is not None:
        _check_backend(backend, _used(settings, specials, directory), rows, directory)


def _special_ids(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = values.get(name)
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int) and not isinstance(token, bool):
                yield name, token


def _check_backend(backend: Mapping[str, Any], used: Mapping[str, str], rows: int, directory: Path) -> None:
    path = directory / "tokenizer.json"
    model = backend.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        highest = max((token for token in vocabulary.values() if type(token) is int), default=-1)
    elif isinstance(vocabulary, list):
        highest = len(vocabulary) - 1
    else:
        raise UserError(f"{path} is damaged: it has no vocabulary.", "Copy it again from where the model is from.")
    added = backend.get("added_tokens")
    numbers = {
        token["content"]: token["id"]
        for token in (added if isinstance(added, list) else [])
        if isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
    }
    # A vocabulary may repeat the added tokens at its end, so they are separated before it is checked.
    if isinstance(vocabulary, dict) and highest >= rows:
        highest = max((i for text, i in vocabulary.items() if type(i) is int and text not in numbers), default=-1)
    if highest >= rows:
        raise UserError(f"{path} has tokens up to {highest}, and the model knows those below {rows}.", _HINT)
    for text, number in numbers.items():
        if number >= rows and (place := _place(text, used)) is not None:
            raise UserError(
                f"{path}: {one_line(text, 60)}, {place}, is token {number}, and the model knows those below {rows}.",
                f"{_HINT[:-1]}; tokens cannot be added to a model here.",
            )


def _used(settings: Mapping[str, Any], specials: Mapping[str, Any], directory: Path) -> dict[str, str]:
    """Tokens in use: role to token, and the chat template under an empty name."""
    used = {}
    for source in (specials, settings):
        for role in _ROLES:
            value = source.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                used[role] = text
    template = settings.get("chat_template")
    if (file := directory / "chat_template.jinja").is_file() and file.stat().st_size < 1 << 20:
        template = file.read_text(encoding="utf-8", errors="replace")
    used[""] = template if isinstance(template, str) else str(template or "")
    return used


def _place(text: str, used: Mapping[str, str]) -> str | None:
    role = next((role for role, token in used.items() if role and token == text), None)
    if role is not None:
        return f"the {role}"
    return "which the chat template writes" if text and text in used[""] else None


_OTHERS = {family: what for what, families in TABLES["others"].items() for family in families}
_CHOOSE = "Choose a causal language model: one whose config.json names an architecture that ends with ForCausalLM."


def check_architecture(config: Mapping[str, Any], directory: Path) -> None:
    """Check that a ``config.json`` describes a causal language model, as far as it says.

    Args:
        config: Its content.
        directory: Name of the model in messages.

    Raises:
        UserError: If not.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or not family:
        raise UserError(
            f"{directory / 'config.json'} has no model_type, so its architecture is not known.",
            "Copy the model's own config.json; those of other formats (Mistral's params.json, GGML) do not do.",
        )
    named = config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    shown = f"{directory} is {{}} ({one_line(names[0] if names else family, 60)}), not a causal language model{{}}."
    if config.get("is_encoder_decoder") is True or (family in TABLES["encoder_decoders"] and not writes):
        raise UserError(shown.format("an encoder-decoder", ""), _CHOOSE)
    if family in _OTHERS:
        raise UserError(shown.format(_OTHERS[family], ""), _CHOOSE)
    if family in TABLES["encoders"] and not (writes and config.get("is_decoder") is True):
        raise UserError(shown.format("an encoder", ""), _CHOOSE)
    does = next((does for name in names for end, does in TABLES["heads"].items() if name.endswith(end)), None)
    # GPT-2's class for pretraining generates text.
    if does is not None and not writes and not (family.startswith("gpt") and names[0].endswith("ForPreTraining")):
        raise UserError(shown.format(f"a {one_line(family, 40)} with another head", f": {does}"), _CHOOSE)


@dataclass(frozen=True)
class CheckedModel:
    """A model directory that has passed its checks.

    Args:
        config: The content of its ``config.json``.
        tensors: The tensors of its files, decoded where they can be.
        is_compared: Whether all large weights were compared with ``config.json``; for other models errors show when
            they are built.
    """

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    is_compared: bool


def check_model_directory(directory: Path) -> CheckedModel:
    """Check that a directory holds a complete causal language model in the transformers format.

    Raises:
        UserError: If configuration, tokenizer or weights are missing, damaged or do not belong together, if the weights
            are pickles, if the model brings code of its own, or is of another kind or newer than transformers.
    """
    config = check_model_config(directory)
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{directory} has no tokenizer.", "Copy the tokenizer's files from where the model is from.")
    tensors = read_decoded(directory, config).tensors
    is_compared = check_shapes(config, tensors, directory)
    embedding = _embedding(of_text_part(config, tensors))
    check_tokens(config, embedding[1].shape[0] if embedding is not None else None, directory)
    check_known(config, directory)
    return CheckedModel(config, tensors, is_compared)


def check_model_config(directory: Path) -> dict[str, Any]:
    """Check that a directory describes a causal language model that needs no code but transformers'.

    Returns:
        The content of its ``config.json``.

    Raises:
        UserError: If not.
    """
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise unreadable(directory, error) from error
    if not names:
        raise UserError(f"{directory} is empty.", "Copy or fetch the model into it.")
    config = read_description(directory / "config.json")
    adapter = read_description(directory / ADAPTER_CONFIG)
    if config is None:
        if adapter is not None:
            raise not_a_model(directory, adapter)
        raise UserError(
            f"{directory} has no config.json, so it is not a model.",
            "Give a directory with config.json, a tokenizer and safetensors weights, or a GGUF file.",
        )
    if adapter is not None:
        # transformers would load the base that it names instead of the weights in the directory.
        base = wanted_base(adapter)
        raise UserError(
            f"{directory} holds a model and an adapter{f' for {base}' if base else ''} at once.",
            f"Move {ADAPTER_CONFIG} out of it, or give the model that the adapter was trained on.",
        )
    refuse_foreign(config, directory / "config.json")
    for name in ("tokenizer_config.json", "generation_config.json"):
        refuse_foreign(read_description(directory / name) or {}, directory / name)
    check_architecture(config, directory)
    return config


#: Name suffixes of input embeddings, in the families that transformers knows.
_EMBEDDINGS = tuple(TABLES["embeddings"])
_HEADS = ("lm_head.weight", "embed_out.weight")
#: Layer number in the name of a tensor or a module, and the name within the layer.
LAYER_NAME = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,9})\.(.+)")
_EXPERT = re.compile(r"(.+\.experts)\.(\d{1,9})\.(.+)")
#: Numbers of layers up to this are accepted whatever the weights have, as they cost little.
_FEW_LAYERS = 256
#: Keys of the number of layers in configurations.
_DEPTHS = frozenset(TABLES["depths"])
_TAKE_BOTH = "Take config.json and weights from the same model."


def check_shapes(config: dict[str, Any], tensors: Mapping[str, Tensor], directory: Path) -> bool:
    """Check that the weights have the layers and shapes that ``config.json`` describes.

    Families that :mod:`core.models.architecture.architecture` does not know are checked as far as possible: the rest
    shows when the model is loaded.

    Args:
        config: The content of ``config.json``.
        tensors: As the headers describe them, decoded where they can be.
        directory: Name of the model in messages.

    Returns:
        True if all large weights were compared.

    Raises:
        UserError: At the first difference.
    """
    if not tensors:
        raise UserError(f"{directory} has weights without a single tensor.", "Copy or fetch them again.")
    config = dict(as_files_are_tied(config, tensors))
    for place, key, value in walk(config):
        # A layer has at least one tensor. Excess layers would be built one by one until memory runs out.
        if key in _DEPTHS and type(value) is int and value > max(len(tensors), _FEW_LAYERS):
            raise UserError(
                f"{directory}: the weights have {len(tensors):,} tensors in all, and config.json says that "
                f"{one_line(place, 60)} is {one_line(str(value), 20)}.",
                _TAKE_BOTH,
            )
    _check_experts(tensors, directory)
    architecture = _known_architecture(config, directory)
    if architecture is None:
        return False
    tensors = of_text_part(config, tensors)
    if (found := _embedding(tensors)) is not None:
        _compare(found[0], found[1], (architecture.vocabulary, architecture.hidden), directory)
    layers = by_layer(tensors)
    if layers and len(layers) != architecture.depth:
        raise UserError(
            f"{directory}: the weights have {len(layers)} layers and config.json says {architecture.depth}.", _TAKE_BOTH
        )
    _check_linears(architecture, layers, directory)
    if not architecture.tied and found is not None and not any(name.endswith(_HEADS) for name in tensors):
        raise UserError(
            f"{directory} has no output head in its weights, so it cannot write ({', '.join(_HEADS)}).",
            "Use the version with the language model head, not the one for embeddings.",
        )
    return True


def _known_architecture(config: dict[str, Any], directory: Path) -> Architecture | None:
    quantization = read_quantization(directory, config)
    if quantization is not None and not quantization.is_decoded:
        return None  # packed weights have other shapes
    try:
        return read_architecture(config, str(directory / "config.json"))
    except UserError:
        return None  # unsupported families are not an error here


def of_text_part(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a language model by the names in its own class; for a composite model, its text part."""
    if not is_composite(config):
        return tensors
    return {own: tensors[name] for name, own in split_names(tensors).text.items()}


def _check_experts(tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Check that experts are numbered without gaps: they are stacked in order, whatever their numbers."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in tensors:
        if (match := _EXPERT.fullmatch(name)) is not None:
            numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (before, after), found in numbers.items():
        missing = next((number for number in range(len(found)) if number not in found), None)
        if missing is not None:
            raise UserError(
                f"{directory} lacks {one_line(f'{before}.{missing}.{after}', 120)} in its weights.",
                "Copy or fetch them again.",
            )


def _check_linears(architecture: Architecture, layers: Mapping[int, Mapping[str, Tensor]], directory: Path) -> None:
    shapes = {linear.name: (linear.outputs, linear.inputs) for kind in architecture.layers for linear in kind.linears}
    alike = len(architecture.layers) == 1
    named = {name for layer in layers.values() for name in layer}
    for number, layer in sorted(layers.items()):
        for name, shape in shapes.items():
            tensor = layer.get(f"{name}.weight")
            if tensor is not None:
                # GPT-2 stores its matrices transposed.
                if tensor.shape != shape[::-1]:
                    _compare(f"layer {number}, {name}.weight", tensor, shape, directory)
            elif alike and f"{name}.weight" in named:
                raise UserError(
                    f"{directory} lacks the weights of layer {number}, {name}.", "Copy or fetch them again."
                )


def _compare(name: str, tensor: Tensor, expected: tuple[int, ...], directory: Path) -> None:
    if tensor.shape != expected:
        raise UserError(
            f"{directory}: the weights do not match config.json: {one_line(name, 120)} is {tensor}, and should be "
            f"{' x '.join(map(str, expected))}.",
            _TAKE_BOTH,
        )


def _embedding(tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
    for name, tensor in tensors.items():
        if name.endswith(_EMBEDDINGS) and len(tensor.shape) == 2 and "vision" not in name and "per_layer" not in name:
            return name, tensor
    return None


def by_layer(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Tensors by layer, and by their name within it."""
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (match := LAYER_NAME.search(name)) is not None:
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
    return layers


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: Ranks up to this are accepted whatever the factors have, as they cost little: a default that patterns override.
_ANY_RANK = 256
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


def wanted_base(config: Mapping[str, Any]) -> str | None:
    """Base model that an adapter was trained on, as in its ``adapter_config.json``."""
    name = config.get("base_model_name_or_path")
    return one_line(name, 200) if isinstance(name, str) and name else None


def not_a_model(directory: Path, config: Mapping[str, Any]) -> UserError:
    """The error for an adapter in place of a model."""
    base = wanted_base(config)
    return UserError(
        f"{directory} holds an adapter{f' for {base}' if base else ''}, not a model.",
        f"Give {base or 'the model that the adapter was trained on'}.",
    )


def check_adapter(adapter: Path, base: Path) -> None:
    """Check that an adapter is complete, not a pickle, needs no foreign code, and fits a base by its shapes.

    Names do not decide: a base may be moved and renamed.

    Args:
        adapter: Its directory.
        base: Directory of the base model.

    Raises:
        UserError: If not.
    """
    config = read_description(adapter / ADAPTER_CONFIG)
    if config is None:
        raise UserError(
            f"{adapter} has no {ADAPTER_CONFIG}, so it is not an adapter.", "Give a directory in PEFT's format."
        )
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        if adapter.is_dir() and any(path.suffix in PICKLES for path in adapter.iterdir()):
            raise UserError(
                f"{adapter} has its weights as pickles only, which run code when they are loaded.",
                f"Use a version of the adapter that has {ADAPTER_WEIGHTS}.",
            )
        raise UserError(f"{adapter} has no {ADAPTER_WEIGHTS}.", "Copy it there.")
    refuse_foreign(config, adapter / ADAPTER_CONFIG)
    if config.get("peft_type") not in (None, "LORA"):
        kind = one_line(str(config.get("peft_type")), 40)
        raise UserError(f"{adapter} holds an adapter of a kind that is not known here ({kind}).", "Use a LoRA adapter.")
    for key in ("layer_replication", "megatron_config"):
        if config.get(key):
            raise UserError(
                f"{adapter / ADAPTER_CONFIG} has {key}, which builds another model than the base.",
                "Use another adapter.",
            )
    factors = read_header(adapter / ADAPTER_WEIGHTS)
    _check_ranks(config, factors, adapter)
    model = read_description(base / "config.json") or {}
    quantization = read_quantization(base, model)
    if quantization is not None and not quantization.is_decoded:
        return  # packed weights do not show their shapes
    if is_composite(model):
        inner = {name.removeprefix(_PREFIX): factor for name, factor in factors.items()}
        factors = {_PREFIX + own: inner[name] for name, own in split_names(inner).text.items()}
    weights = of_text_part(model, read_decoded(base, model).tensors)
    _check_factors(factors, weights, adapter, base, wanted_base(config))


def _check_ranks(config: Mapping[str, Any], factors: Mapping[str, Tensor], adapter: Path) -> None:
    """Check the ranks against the factors: PEFT allocates by rank before the factors are read.

    Raises:
        UserError: If there are no factors, or a rank is none or larger than any factor has.
    """
    found = [
        factor.shape[0] if match[2] == "A" else factor.shape[-1]
        for name, factor in factors.items()
        if (match := _FACTOR.fullmatch(name)) and factor.shape
    ]
    if not any("lora_" in name for name in factors):
        raise UserError(f"{adapter / ADAPTER_WEIGHTS} has no LoRA factors.", "Use another version of the adapter.")
    pattern = config.get("rank_pattern")
    ranks = [config.get("r", 8), *(pattern.values() if isinstance(pattern, dict) else ())]
    for rank in ranks:
        if type(rank) is not int or not 0 < rank <= max([_ANY_RANK, *found]):
            raise UserError(
                f"{adapter / ADAPTER_CONFIG} says that a rank is {one_line(str(rank), 20)}, and the factors in "
                f"{ADAPTER_WEIGHTS} have {max(found, default=0)} at most.",
                "Take both from the same adapter.",
            )


def _check_factors(
    factors: Mapping[str, Tensor], weights: Mapping[str, Tensor], adapter: Path, base: Path, wanted: str | None
) -> None:
    trained_on = f" It was trained on {wanted}." if wanted else ""
    hint = f"Choose the base that the adapter was trained on.{trained_on}"
    matched = 0
    layers = by_layer(weights)
    for name, factor in factors.items():
        match = _FACTOR.fullmatch(name)
        # By layer, as the prefix before it may be omitted on disk.
        place = LAYER_NAME.search(match[1]) if match is not None else None
        weight = layers.get(int(place[1]), {}).get(f"{place[2]}.weight") if place is not None else None
        if match is None or weight is None or len(weight.shape) != 2 or len(factor.shape) != 2:
            continue
        matched += 1
        features = factor.shape[1] if match[2] == "A" else factor.shape[0]
        # GPT-2 stores its matrices transposed.
        expected = {weight.shape[1], weight.shape[0]} if ".h." in name else {weight.shape[1 if match[2] == "A" else 0]}
        if features not in expected:
            side = "inputs" if match[2] == "A" else "outputs"
            raise UserError(
                f"The adapter in {adapter} is for another base than {base}: "
                f"{one_line(match[1], 120)} is {weight} there, and the adapter has {features} {side}.",
                hint,
            )
    named = [match[1] for name in factors if (match := _FACTOR.fullmatch(name)) and LAYER_NAME.search(match[1])]
    if named and not matched:
        raise UserError(
            f"The adapter in {adapter} is for another base than {base}, which has no {one_line(named[0], 120)}.", hint
        )
