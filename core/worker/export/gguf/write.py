"""Writing of GGUF files: a model by llama.cpp's converter and quantizer, an adapter for use with its base.

The file appears whole or not at all. Its directory is a new one (:func:`core.directories.new_directory`) that nobody
else writes to, and which is removed if the process is killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import paths
from core.directories import Progress, disk_error, refuse_existing, require_space
from core.export.job import run_process
from core.export.llama_cpp import gguf_bytes, require_quantizer
from core.export.request import CONVERTED, Quant
from core.models.description import TOKENIZER_LIMIT, WEIGHTS_INDEX, read_description
from core.models.sandboxed import check_gguf
from core.models.tensors import weight_files
from core.sandbox.rights import reading
from core.worker.export.gguf.converter import Checked, check_model, fetch_converter


@dataclass(frozen=True)
class GgufOptions:
    """Options of a GGUF file; missing options are taken from the model's directory.

    Args:
        template: The chat template, as Jinja; ``{% generation %}`` tags are replaced.
        tool_template: A separate template for conversations with tools, if there is one.
        stops: End-of-turn tokens, most usual first; beside the tokenizer's own there is room for two.
        name: The model's name, for people.
        license: Its license, by its SPDX id: ``apache-2.0``.
        base_name: The name of its base model, for people.
        base: The directory of the base, for tokenizer files that the model's own directory lacks.
        base_gguf: The GGUF file of the base, if it came from one: its tokenizer is copied.
        calibration: Rows as token ids, whose activations weight the quantization (an importance matrix), from
            :func:`calibration_rows`; used for quantizations of less than eight bits.
        is_exact: Whether the model was trained with the weights of a file of this type, with embeddings and head in
            Q8_0.
    """

    template: str | None = None
    tool_template: str | None = None
    stops: tuple[int, ...] = ()
    name: str = ""
    license: str = ""
    base_name: str = ""
    base: Path | None = None
    base_gguf: Path | None = None
    calibration: tuple[tuple[int, ...], ...] = ()
    is_exact: bool = False


_GENERATION_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def without_training_tags(template: str) -> str:
    """A chat template with its ``{% generation %}`` tags replaced by ``{% if true %}``.

    Readers other than transformers know no such tag, and some refuse the whole template. Another tag in its place keeps
    the blanks around it, which removing it would not: a line that ends with a tag ends without a newline.
    """
    return _GENERATION_TAG.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template)


def entries(options: GgufOptions) -> Iterator[tuple[str, str, Any]]:
    """The metadata entries of options: key, type of the value, and value."""
    if options.name:
        yield "general.name", "string", options.name
    if options.license:
        yield "general.license", "string", options.license
    if options.base_name:
        yield "general.base_model.count", "uint32", 1
        yield "general.base_model.0.name", "string", options.base_name
    if options.template is not None:
        yield "tokenizer.chat_template", "string", without_training_tags(options.template)
    if options.tool_template is not None:
        yield "tokenizer.chat_template.tool_use", "string", without_training_tags(options.tool_template)


#: Files that are taken unchanged. The export sets the chat template.
_LINKED = ("generation_config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json")
#: Model types whose experts are chosen by a sigmoid, which the converter reads from ``scoring_func``. transformers does
#: not ask for that key; without it llama.cpp takes a softmax, or ends.
_SIGMOID = ("deepseek_v3", "dots1", "exaone_moe", "glm4_moe_lite")
#: Forms of a tokenizer that are taken if there is no ``tokenizer.json``.
_OTHER_FORMS = ("vocab.json", "merges.txt", "tekken.json")
_SENTENCEPIECE = "tokenizer.model"
#: Token types of ``tokenizer.json`` that the converter reads from ``tokenizer_config.json``.
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


def stage(model: Path, options: GgufOptions, directory: Path) -> None:
    """Fill a directory with the converter's input.

    A ``tokenizer.model`` that transformers has not saved comes from the base. The types of added tokens, which it only
    keeps in ``tokenizer.json``, are written where the converter looks for them, and so is the scoring of experts if
    only the model's class defines it.

    Args:
        model: The model's directory.
        options: Options of the file.
        directory: An empty directory.

    Raises:
        UserError: If a file of the model is damaged.
        OSError: If the directory cannot be written.
    """
    for path in weight_files(model):
        _link(path, directory)
    if not (model / "model.safetensors").is_file():
        _link(model / WEIGHTS_INDEX, directory)
    for name in _LINKED:
        _link(model / name, directory)
    config = read_description(model / "config.json") or {}
    if config.get("model_type") in _SIGMOID and "scoring_func" not in config:
        (directory / "config.json").write_text(json.dumps({**config, "scoring_func": "sigmoid"}), encoding="utf-8")
    else:
        _link(model / "config.json", directory)
    if not (model / "tokenizer.json").is_file():
        for name in _OTHER_FORMS:
            _link(model / name, directory)
    sources = [model, *([options.base] if options.base is not None else [])]
    found = next((place / _SENTENCEPIECE for place in sources if (place / _SENTENCEPIECE).is_file()), None)
    if found is not None:
        _link(found, directory)
    settings = _tokenizer_settings(model)
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def own_templates(model: Path) -> tuple[str | None, str | None]:
    """A model's own chat template, and its separate one for conversations with tools.

    Raises:
        UserError: If a file is damaged.
    """
    settings = read_description(model / "tokenizer_config.json") or {}
    value = settings.get("chat_template")
    named: dict[str, Any] = {"default": value}
    if isinstance(value, list):
        named = {str(item.get("name")): item.get("template") for item in value if isinstance(item, dict)}
    elif isinstance(value, dict):
        named = value
    files = {
        "default": model / "chat_template.jinja",
        "tool_use": model / "additional_chat_templates" / "tool_use.jinja",
    }
    named |= {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}
    default, tools = named.get("default"), named.get("tool_use")
    return (default if isinstance(default, str) else None, tools if isinstance(tools, str) else None)


def _link(path: Path, directory: Path) -> None:
    if path.is_file():
        (directory / path.name).symlink_to(path.absolute())


def _tokenizer_settings(model: Path) -> dict[str, Any]:
    settings = read_description(model / "tokenizer_config.json") or {}
    settings.pop("chat_template", None)
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if not settings.get("added_tokens_decoder"):
        content = read_description(model / "tokenizer.json", TOKENIZER_LIMIT) or {}
        added = content.get("added_tokens")
        settings["added_tokens_decoder"] = {
            str(token["id"]): {"content": token["content"], **{name: bool(token.get(name)) for name in _FLAGS}}
            for token in (added if isinstance(added, list) else [])
            if isinstance(token, dict) and type(token.get("id")) is int and isinstance(token.get("content"), str)
        }
    return settings


_WORKER = "core.worker.job"
#: Memory limit of a process in bytes: its libraries, and bytes per element of the largest tensor.
_LIBRARIES, _BYTES_AT_WORK = 4 << 30, 16
#: Most tokens of the calibration rows, and of a single row. Each token takes a forward pass on the processor, and
#: after some thousands little changes.
CALIBRATION_TOKENS, CALIBRATION_ROW = 4000, 512
_HINT = "Export merged, and convert it elsewhere."


def write_gguf(model: Path, target: Path, quant: Quant, options: GgufOptions, progress: Progress) -> tuple[str, ...]:
    """Write a model as one GGUF file.

    Args:
        model: A directory of safetensors in 16 or 32 bit as transformers saves it, with tokenizer files.
        target: The file; it must not exist.
        quant: The type of its weights.
        options: Options of the file.
        progress: Called with the activity; may raise to give up, and nothing remains then.

    Returns:
        Sentences on differences between llama.cpp's tokenizer and the model's.

    Raises:
        UserError: If the converter cannot be fetched, the quantizer is not installed, llama.cpp would compute the
            model differently, or the disk is full or cannot be written.
    """
    require_quantizer(quant)
    refuse_existing(target)
    converter = fetch_converter(progress)
    progress("checking the model", None, None)
    checked = check_model(model, converter)
    if options.template is None:
        default, tools = own_templates(model)
        options = replace(options, template=default, tool_template=tools)
    # Quantized from weights without earlier rounding.
    first: Quant = quant if quant in CONVERTED else checked.dtype
    with _workspace(target, _space(checked, first, quant, options)) as work:
        staged, result = work / "staged", work / "model.gguf"
        staged.mkdir(mode=paths.DIRECTORY_MODE)
        stage(model, options, staged)
        job = conversion_job(staged, result, first, options, converter)
        based = () if options.base_gguf is None else (options.base_gguf,)
        job |= _limits(checked, work, converter, staged, *based)
        notes = run_process(f"{_WORKER} convert", job, "llama.cpp's converter", progress, _HINT)["notes"]
        if quant not in CONVERTED:
            source, result = result, work / "quantized.gguf"
            _quantize(source, result, quant, options, checked, work, progress)
        check_gguf(result)
        result.rename(target)
    return tuple(notes)


def write_adapter_gguf(adapter: Path, base: Path, target: Path, progress: Progress) -> None:
    """Write a LoRA adapter as its own GGUF file, for use with a GGUF file of its base.

    Its scale is converted for llama.cpp, which knows no rsLoRA: the effect is the same.

    Args:
        adapter: A directory in PEFT's format.
        base: The directory of its base model.
        target: The file; it must not exist.
        progress: As for :func:`write_gguf`.

    Raises:
        UserError: If the adapter has unsupported parts (DoRA, whole modules, biases), with the advice to export merged;
            or as :func:`write_gguf`.
    """
    refuse_existing(target)
    converter = fetch_converter(progress)
    progress("checking the model", None, None)
    checked = check_model(base, converter)
    size = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    with _workspace(target, 2 * size) as work:
        staged, result = work / "base", work / "adapter.gguf"
        staged.mkdir(mode=paths.DIRECTORY_MODE)
        stage(base, GgufOptions(), staged)
        job = {
            "converter": str(converter),
            "adapter": str(adapter.absolute()),
            "base": str(staged),
            "target": str(result),
            **_limits(checked, work, converter, adapter, staged),
        }
        run_process(f"{_WORKER} convert-adapter", job, "the conversion of the adapter", progress, _HINT)
        result.rename(target)


def conversion_job(staged: Path, target: Path, quant: Quant, options: GgufOptions, converter: Path) -> dict[str, Any]:
    """The job of the converter's process.

    Args:
        staged: The directory to convert.
        target: The file.
        quant: A type that the converter writes itself.
        options: Options of the file; the template is written unchanged.
        converter: The directory of the converter.
    """
    return {
        "converter": str(converter),
        "model": str(staged),
        "target": str(target),
        "quant": quant,
        "entries": list(entries(options)),
        "stops": list(options.stops),
        "template": options.template,
        "base_gguf": None if options.base_gguf is None else str(options.base_gguf),
    }


def _quantize(
    source: Path, target: Path, quant: Quant, options: GgufOptions, checked: Checked, work: Path, progress: Progress
) -> None:
    common = {"source": str(source), **_limits(checked, work)}
    importance = None
    if rows := options.calibration:
        importance = work / "importance.npz"
        job = {**common, "target": str(importance), "rows": rows}
        run_process(f"{_WORKER} importance", job, "the importance matrix", progress, _HINT)
    job = {
        **common,
        "target": str(target),
        "quant": quant,
        "importance": None if importance is None else str(importance),
        "rows": len(rows),
        "embeddings": "Q8_0" if options.is_exact else None,
        "expected": _bytes(checked, quant, options),
    }
    run_process(f"{_WORKER} quantize", job, "llama.cpp's quantizer", progress, _HINT)


def calibration_rows(rows: Iterable[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The rows for an importance matrix, up to a total of tokens.

    Args:
        rows: Rows as token ids; only as many are read as are taken.
    """
    found: list[tuple[int, ...]] = []
    left = CALIBRATION_TOKENS
    for row in rows:
        if cut := tuple(row[: min(CALIBRATION_ROW, left)]):
            found.append(cut)
        left -= len(cut)
        if not left:
            break
    return tuple(found)


def _limits(checked: Checked, work: Path, *reads: Path) -> dict[str, Any]:
    """Limits and rights of a process: memory, the files that it reads, and the directory for its own."""
    return {
        "memory": _LIBRARIES + _BYTES_AT_WORK * checked.largest,
        "reads": list(reading(*reads).reads),
        "writes": [str(work.absolute())],
    }


def _bytes(checked: Checked, quant: Quant, options: GgufOptions) -> int:
    """Bytes of the file's tensors."""
    embeddings = "Q8_0" if options.is_exact else None
    has_imatrix = bool(options.calibration)
    return gguf_bytes(checked.elements, checked.architecture, quant, has_imatrix=has_imatrix, embeddings=embeddings)


def _space(checked: Checked, first: Quant, quant: Quant, options: GgufOptions) -> int:
    """Bytes of all files together."""
    return round(sum(_bytes(checked, kind, options) for kind in {first, quant}) * 1.02) + (16 << 20)


@contextlib.contextmanager
def _workspace(target: Path, needed: int) -> Iterator[Path]:
    """A directory beside the file for intermediate files; removed in the end."""
    try:
        require_space(target.parent, needed, f"writing {target.name}", "Make room, or write it to another disk.")
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as directory:
            yield Path(directory)
    except OSError as error:
        raise disk_error(target.parent, error) from error
