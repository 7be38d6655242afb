"""Whether a directory holds a model that can be loaded without running anybody's code; nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.text import one_line

#: Written last into a directory that is made here: where the model came from, and the sizes of its files.
RECORD_NAME = "localtune.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
#: Weights that are programs: unpickling them runs what they say.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
#: The header of a safetensors file is refused by its readers when it is longer.
HEADER_LIMIT = 100_000_000
#: Bytes hashed at either end of a weight file.
FINGERPRINT_BYTES = 1 << 20


def read_record(directory: Path) -> dict[str, Any] | None:
    """What ``localtune.json`` says, or None when the directory is not one of ours or a file of it has another size."""
    try:
        record = json.loads((directory / RECORD_NAME).read_bytes())
        sizes = record["files"]
        whole = all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and sizes else None


def check_model_directory(directory: Path) -> Path:
    """See that a directory holds a whole model in the transformers format.

    Returns:
        The directory.

    Raises:
        UserError: If configuration, tokenizer or weights are missing or cut short, if the weights are pickles, or if
            the model brings code of its own.
    """
    check_model_config(directory)
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{directory} has no tokenizer.", "Copy the tokenizer's files from where the model is from.")
    for path in _weight_files(directory):
        check_safetensors(path)
    return directory


def check_model_config(directory: Path) -> None:
    """See that a directory describes a model, and one that needs no code but that of transformers.

    Raises:
        UserError: If not.
    """
    config = _read_json(directory / "config.json")
    if config is None:
        if (directory / "adapter_config.json").is_file():
            raise UserError(
                f"{directory} holds an adapter, not a model.", "Give the model that the adapter was trained on."
            )
        raise UserError(
            f"{directory} has no config.json that can be read, so it is not a model.",
            "Give a directory with config.json, a tokenizer and safetensors weights, or a GGUF file.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (_read_json(directory / name) or {}):
            raise UserError(
                f"{directory} brings Python code of its own ({name} has auto_map), which is never run.",
                "If transformers knows the architecture without it, remove auto_map; else choose another model.",
            )


def _weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, every one that the index names."""
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / WEIGHTS_INDEX).is_file():
        index = _read_json(directory / WEIGHTS_INDEX) or {}
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
            raise UserError(f"{directory / WEIGHTS_INDEX} is damaged.", "Copy it again.")
        names = sorted(set(shards.values()))
        if any(Path(name).name != name for name in names):
            raise UserError(f"{directory / WEIGHTS_INDEX} names files outside its directory.", "Do not use this model.")
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{directory} lacks {one_line(missing[0], 120)}{more}.", "Copy the missing files.")
        return [directory / name for name in names]
    if any(path.suffix in PICKLES for path in directory.iterdir()):
        raise UserError(
            f"{directory} has its weights as pickles only, which run code when they are loaded.",
            "Use the safetensors version of the model, or convert it where you trust it.",
        )
    raise UserError(f"{directory} has no {WEIGHTS} or {WEIGHTS_INDEX}.", "Copy the model's weights into it.")


def check_safetensors(path: Path) -> None:
    """See that a safetensors file is as long as its header says.

    Raises:
        UserError: If it cannot be read or is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: Any = json.loads(file.read(length)) if 2 <= length <= min(HEADER_LIMIT, size - 8) else None
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0) == size
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        whole = False
    if not whole:
        raise UserError(
            f"{path} is damaged or cut short.",
            "Copy it again; if it is a Git LFS pointer, 'git lfs pull' fetches the file itself.",
        )


def weights_fingerprint(directory: Path) -> str:
    """SHA-256 over the names, sizes and both ends of the weight files: tells one base from another in no time.

    The files are gigabytes; their ends, a mebibyte each, hold the header and weights that any training changes.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None
