"""Model description files: JSON read up to a size limit, and refused with a clear error if damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.small_files import read_json, read_small
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
        # A dangling link, as an interrupted download of a hub's cache leaves it, is no file either.
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
            raise lfs_pointer(path) from error
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


def is_lfs_pointer(start: bytes) -> bool:
    """True if ``start`` is the beginning of a Git LFS pointer."""
    return start.startswith(b"version https://git-lfs.github.com/spec/")


def lfs_pointer(path: Path) -> UserError:
    """The error for a Git LFS pointer in place of a file."""
    return UserError(
        f"{path} is a Git LFS pointer, not the file itself.",
        f"Run 'git lfs pull' in {path.parent}, or fetch the model with 'localtune-tui fetch'.",
    )


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
