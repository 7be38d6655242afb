"""Model description files: JSON read up to a size limit, and refused with a clear error if damaged.

A composite model, for images or sound, has a language model as its text part, and only this part is loaded: its
configuration is ``text_config`` in ``config.json``, and its tensors are under ``language_model`` or ``text_model``
beside the towers (vision, audio) and their projections. transformers has a class for the language model alone, whose
tensors have no such prefix.

Quantized weights declare how they are stored in ``quantization_config``; :mod:`core.models.tensors` finds them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.hub_uri import is_hub_id
from core.models.tables import TABLES
from core.small_files import is_lfs_pointer, lfs_pointer, read_json, read_small
from core.text import one_line

#: Largest ``config.json`` or similar file; real ones have kilobytes, or up to 4 MB if they contain all tokens.
DESCRIPTION_LIMIT = 8 << 20
#: Largest ``tokenizer.json``; with 262,144 tokens it has 34 MB.
TOKENIZER_LIMIT = 64 << 20
#: Deepest nesting of objects and lists; real ones are less than ten deep. The code that reads them is recursive.
DEPTH_LIMIT = 64
#: Bytes of the size limit per object or list that a file may have.
_BYTES_PER_OBJECT = 32
_AGAIN = "Copy it again from where the model is from."
#: Another way to get a file of a model; ends a hint.
FETCH = ", or fetch the model with 'localtune-tui fetch'"


def read_description(path: Path, limit: int = DESCRIPTION_LIMIT) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        UserError: If it exists but cannot be read, is too large or too deep, or is not a JSON object.
    """
    try:
        raw = read_small(path, limit)
    except (FileNotFoundError, NotADirectoryError):
        # A dangling link, as an interrupted download of a hub's cache leaves it, is not a file either.
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    # Millions of small objects take seconds and gigabytes. Strings may have brackets as well.
    if raw.count(b"{") + raw.count(b"[") > limit // _BYTES_PER_OBJECT:
        raise UserError(f"{path} has too many objects in it.", _AGAIN)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if is_lfs_pointer(raw):
            raise lfs_pointer(path, otherwise=FETCH) from error
        raise UserError(f"{path} is damaged: it is not JSON.", _AGAIN) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a JSON object.", _AGAIN)
    if _is_deep(data):
        raise UserError(f"{path} is nested more than {DEPTH_LIMIT} levels deep.", _AGAIN)
    return data


def walk(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Every key of a description, at any depth.

    Args:
        content: Result of :func:`read_description`, whose depth is bounded.

    Yields:
        Its path (``text_config._attn_implementation``), its name, and its value.
    """
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            for key, inner in value.items():
                place = f"{where}.{key}" if where else str(key)
                yield place, str(key), inner
                waiting.append((place, inner))
        elif isinstance(value, list):
            waiting += [(f"{where}[{number}]", inner) for number, inner in enumerate(value) if _holds(inner)]


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEPTH_LIMIT):
        inside = (inner.values() if isinstance(inner, dict) else inner for inner in level)
        level = [value for values in inside for value in values if _holds(value)]
        if not level:
            return False
    return True


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or directory that the system does not permit to read."""
    hint = "Check its permissions." if isinstance(error, PermissionError) else _AGAIN
    return UserError(f"{path} cannot be read: {error.strerror or error}.", hint)


#: Record written last into a directory made by this program: the model's origin, and the sizes of its files.
RECORD_NAME = "localtune.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: Pickled weights: unpickling runs code.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: Largest ``localtune.json``, in bytes: it has a line for each file.
_RECORD_LIMIT = 4 << 20


def read_record(directory: Path) -> dict[str, Any] | None:
    """Content of ``localtune.json``; None if this program did not make the directory, or a file has another size."""
    try:
        record = read_json(directory / RECORD_NAME, _RECORD_LIMIT)
        sizes = record["files"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and sizes else None


#: Keys that name classes in Python files next to the weights, or in a repository.
_CODE = ("auto_map", "custom_generate")
#: Keys that replace layers by kernels from repositories.
_KERNELS = ("use_kernels", "use_hub_kernels", "kernel_config")
#: A key that replaces the usual name of the weight file.
_OTHER_WEIGHTS = "transformers_weights"
_HINT = "Remove the key from the file if the model works without it; else choose another model."


def refuse_foreign(content: Mapping[str, Any], path: Path) -> None:
    """Refuse a description that needs anything beyond transformers and the weight files.

    Args:
        content: Content of the file, from :func:`core.models.description.read_description`.
        path: The file.

    Raises:
        UserError: If it asks for more; the key is named.
    """
    for place, key, value in walk(content):
        shown = one_line(place, 120)
        if key in _CODE and value and isinstance(value, (str, list, dict)):
            raise UserError(
                f"{path.parent} brings Python code of its own ({path.name} has {shown}), which is never run.",
                f"If transformers knows the architecture without it, remove {key}; else choose another model.",
            )
        # A whole number is a token id: some configurations contain their vocabulary.
        if key in _KERNELS and value and type(value) is not int:
            raise UserError(f"{path}: {shown} asks for native code of others, which is never fetched.", _HINT)
        if key == _OTHER_WEIGHTS and value:
            raise UserError(
                f"{path}: {shown} names {one_line(str(value), 60)} in place of the model's own weights.", _HINT
            )
        if "implementation" in key.lower() or "kernel" in key.lower():
            name = next((text for text in _texts(value) if "/" in text), None)
            if name is not None:
                raise UserError(
                    f"{path}: {shown} names {one_line(name, 60)}, a repository with native code, which is never "
                    "fetched.",
                    _HINT,
                )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


#: Names in a whole model or its files, to names in the class of the text part: regular expressions and replacements
#: for their match, applied one after the other. The forms are ``model.language_model.layers`` with ``lm_head`` (as
#: transformers 5 saves), ``language_model.model.layers`` with ``language_model.lm_head`` (as transformers 4 did), and
#: both with ``text_model``.
KEY_MAPPING = {
    r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.": "lm_head.",
    r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?": "model.",
}
_EXPRESSIONS = [(re.compile(expression), replacement) for expression, replacement in KEY_MAPPING.items()]
_HEAD = "lm_head."


def is_composite(config: Mapping[str, Any]) -> bool:
    """True if a ``config.json`` describes a model with a text part beside others."""
    return isinstance(config.get("text_config"), Mapping)


def text_model_type(config: Mapping[str, Any]) -> str | None:
    """The ``model_type`` of a composite model's text part; None if its configuration does not say."""
    found = config["text_config"].get("model_type") if is_composite(config) else None
    return found if isinstance(found, str) and found else None


def text_name(name: str) -> str:
    """A tensor's or module's name in the class of the text part, from its name in the whole model or its files; the
    name itself if it has no prefix."""
    for expression, replacement in _EXPRESSIONS:
        name = expression.sub(replacement, name, count=1)
    return name


def auto_class(config: Mapping[str, Any]) -> str:
    """The class of transformers by which others load a model with all its parts: ``AutoModelForCausalLM``."""
    if not is_composite(config):
        return "AutoModelForCausalLM"
    sees = isinstance(config.get("vision_config"), Mapping)
    return "AutoModelForImageTextToText" if sees else "AutoModelForMultimodalLM"


@dataclass(frozen=True)
class Parts:
    """The tensors of a composite model's files.

    Args:
        text: Tensors of the language model: name in the files to name in its own class.
        others: Names of the other tensors: towers and projections.
    """

    text: dict[str, str]
    others: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """True if the files have separate weights for the output head."""
        return any(name.startswith(_HEAD) for name in self.text.values())


def split_names(names: Iterable[str]) -> Parts:
    """Divide the tensors of a composite model's files.

    Files that were saved from the class of the text part have no prefix at all: everything in them is text.
    """
    found = {name: text_name(name) for name in names}
    is_whole = any(name != own and not own.startswith(_HEAD) for name, own in found.items())
    text = {name: own for name, own in found.items() if not is_whole or name != own or own.startswith(_HEAD)}
    return Parts(text, tuple(name for name in found if name not in text))


def is_tied(config: Mapping[str, Any], has_head: bool | None) -> bool | None:
    """True if head and embeddings of a composite model share their weights; None if only the family's default says.

    The flag of the whole model counts; published configurations may omit it, or have it in the text part only, where
    the classes' defaults differ. Then the files say it.

    Args:
        config: The content of ``config.json``.
        has_head: Whether the head has weights of its own in the files; None if unknown.
    """
    whole, inner = config.get("tie_word_embeddings"), config["text_config"].get("tie_word_embeddings")
    if isinstance(whole, bool):
        return whole
    if has_head is None or inner is True:
        return inner if isinstance(inner, bool) else None
    return not has_head


def as_files_are_tied(config: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """A ``config.json`` that says whether head and embeddings of a composite model share their weights, if its files
    show that.

    Args:
        config: The content of ``config.json``.
        names: The tensors in its files; none if they are not there.
    """
    if not is_composite(config) or not (names := list(names)):
        return config
    return {**config, "tie_word_embeddings": is_tied(config, split_names(names).has_head)}


_CARD, _CARD_LIMIT = "README.md", 1 << 20
_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_BASE_MODEL = re.compile(r"^base_model:[ \t]*(?:\r?\n[ \t]*-[ \t]*)?['\"]?([\w.-]+/[\w.-]+)", re.MULTILINE)
#: Suffixes that quantizers add to a model's name.
_SUFFIX = re.compile(
    r"([-_.](quantized|unsloth|bnb|GPTQ|AWQ|AQLM|HQQ|VPTQ|SpQR|QuIP|EXL[23]|AutoRound|quanto|torchao|NF4|w\d+a\d+|"
    r"(NV|MX)?FP[48]([-_](dynamic|static|block))?|int[2348]|[2348]-?bits?|g(32|64|128)))+$",
    re.IGNORECASE,
)


def find_counterpart(directory: Path) -> str:
    """The name of the unquantized model that a quantized one was made from; empty if unknown.

    Args:
        directory: The quantized model's: its card's ``base_model`` decides, then its name without a suffix like
            ``-FP8`` or ``-GPTQ-Int4``.

    Returns:
        ``Qwen/Qwen3-8B``, or ``the model as it was before, which may be named Qwen3-8B`` if it is a guess.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        front = _FRONT.match(read_small(directory / _CARD, _CARD_LIMIT).decode("utf-8"))
        named = _BASE_MODEL.search(front[1]) if front else None
        if named is not None and is_hub_id(named[1]):
            return one_line(named[1], 120)
    names = [_own_name(directory), _cached_name(directory), directory.name]
    for name in names:
        if name and (shorter := _SUFFIX.sub("", name)) != name and shorter:
            return f"the model as it was before, which may be named {one_line(shorter, 120)}"
    return ""


def _own_name(directory: Path) -> str:
    with contextlib.suppress(UserError):
        name = (read_description(directory / "config.json") or {}).get("_name_or_path")
        if isinstance(name, str) and is_hub_id(name):
            return name
    return ""


def _cached_name(directory: Path) -> str:
    """The hub id of a model in the Hugging Face cache: ``models--owner--name/snapshots/revision``."""
    place = directory.parent.parent.name
    return place.removeprefix("models--").replace("--", "/", 1) if place.startswith("models--") else ""


#: File that NVIDIA's Model Optimizer writes instead of a ``quantization_config`` in ``config.json``.
_MODELOPT = "hf_quant_config.json"
_NAMES = TABLES["quantizations"]
_DECODED = frozenset(["mxfp4", "mxfp8", "nvfp4", "fp8", "fbgemm_fp8", "gptq", "awq", "compressed-tensors", "modelopt"])
#: Formats of compressed-tensors that leave weights out (sparsity) or are laid out for a single kernel (Marlin).
_OTHER_FORMATS = frozenset(["marlin-24", "sparse-24-bitmask", "sparse-bitmask"])


@dataclass(frozen=True)
class Quantization:
    """The quantization of a checkpoint.

    Args:
        name: Its name in sentences: ``MXFP4``, ``bitsandbytes NF4``, ``compressed-tensors pack-quantized``.
        method: ``quant_method``.
        settings: The other content of ``quantization_config``.
        dtype: Dtype of the decoded weights, in the names of safetensors: ``BF16`` or ``F16``.
        refusal: The reason why it cannot be decoded; empty if it can.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    dtype: str
    refusal: str = ""

    @property
    def is_decoded(self) -> bool:
        """True if its weights can be decoded."""
        return not self.refusal

    def is_used_as_saved(self, method: str) -> bool:
        """True if a method trains on the saved weights directly, as QLoRA does on NF4.

        Args:
            method: As ``method.name``.
        """
        return self.name == "bitsandbytes NF4" and method == "qlora"


def read_quantization(directory: Path, config: Mapping[str, Any] | None = None) -> Quantization | None:
    """Read the quantization of a model's saved weights; None if they are not quantized.

    Args:
        directory: The model's.
        config: The content of its ``config.json``; None: it is read.

    Raises:
        UserError: If a description is damaged.
    """
    if config is None:
        config = read_description(directory / "config.json") or {}
    # In a composite model any part may have the key.
    found = (value for _, key, value in walk(config) if key == "quantization_config" and isinstance(value, Mapping))
    settings = next(found, None)
    if settings is None:
        written = (read_description(directory / _MODELOPT) or {}).get("quantization")
        if not isinstance(written, Mapping) or not written.get("quant_algo"):
            return None
        settings = {"quant_method": "modelopt", **written}
    method = str(settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "unknown")).lower()
    part = text_part(dict(config))
    named = next((values.get(key) for values in (part, config) for key in ("dtype", "torch_dtype") if key in values), 0)
    return Quantization(
        name=_name(method, settings),
        method=method,
        settings=settings,
        dtype="F16" if named == "float16" else "BF16",
        refusal=_refusal(method, settings),
    )


def _name(method: str, settings: Mapping[str, Any]) -> str:
    if method == "bitsandbytes":
        if not settings.get("load_in_4bit"):
            return "bitsandbytes 8-bit"
        kind = str(settings.get("bnb_4bit_quant_type", "fp4"))
        return "bitsandbytes NF4" if kind == "nf4" else f"bitsandbytes 4-bit ({one_line(kind.upper(), 20)})"
    name = _NAMES.get(method) or one_line(method.upper(), 40)
    more = {"compressed-tensors": settings.get("format"), "modelopt": settings.get("quant_algo")}.get(method)
    return f"{name} {one_line(more, 40)}" if isinstance(more, str) else name


def _refusal(method: str, settings: Mapping[str, Any]) -> str:
    """The reason why a quantization cannot be decoded; empty if it can."""
    if method == "bitsandbytes":
        return ""
    if method not in _DECODED:
        return "it is not decoded"
    bits = settings.get("bits", settings.get("w_bit", 4))
    if method == "gptq":
        layout = settings.get("checkpoint_format", "gptq")
        if layout not in ("gptq", "gptq_v2"):
            return f"its checkpoint_format is {one_line(str(layout), 40)}"
        return "" if bits in (2, 4, 8) else f"it has {one_line(str(bits), 10)} bits"
    if method == "awq":
        layout = str(settings.get("version", "gemm")).lower()
        if layout != "gemm":
            return f"its version is {one_line(layout, 40)}"
        if settings.get("zero_point") is False:
            return "it has no zero points"
        return "" if bits == 4 else f"it has {one_line(str(bits), 10)} bits"
    if method == "compressed-tensors":
        sparsity = settings.get("sparsity_config")
        sparse = sparsity.get("format", "dense") if isinstance(sparsity, Mapping) else "dense"
        for layout in (settings.get("format"), sparse, *(group.get("format") for group in config_groups(settings))):
            if layout in _OTHER_FORMATS:
                return f"its format is {layout}"
    return ""


def config_groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ``config_groups`` of compressed-tensors."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    return [group for group in found if isinstance(group, Mapping)]


def saved_quantization(directory: Path, config: Mapping[str, Any] | None = None) -> str | None:
    """Name of the quantization of the saved weights; None if they are not quantized.

    Raises:
        UserError: As :func:`read_quantization`.
    """
    found = read_quantization(directory, config)
    return found.name if found is not None else None


def check_quantization(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights saved in a quantization that cannot be decoded.

    Raises:
        UserError: If they are; it names the checkpoint to use instead, if the directory names it.
    """
    found = read_quantization(directory, config)
    if found is None or found.is_decoded:
        return
    raise refused(directory, found.name, found.refusal)


def refused(directory: Path, name: str, why: str) -> UserError:
    """The error for weights that cannot be decoded.

    Args:
        directory: The model's.
        name: Name of the quantization.
        why: The reason.
    """
    counterpart = find_counterpart(directory)
    take = f"Take {counterpart}" if counterpart else "Take the model as it was before it was quantized"
    return UserError(
        f"{directory} was saved quantized ({name}), which cannot be trained here: {why}.",
        f"{take}; method.name = qlora makes it 4-bit while loading.",
    )
