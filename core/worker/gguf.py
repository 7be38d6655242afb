"""GGUF files turned into directories that transformers trains from: read once, dequantized, kept as safetensors."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import fsync_file, write_atomic
from core.directories import Progress, partial_directory, require_space
from core.errors import UserError
from core.models.files import RECORD_NAME
from core.text import one_line

GGUF_MAGIC = b"GGUF"
#: Bytes that a dequantized weight takes on disk: bfloat16, which is what models are published in. The rounding is far
#: below the error that the GGUF's own quantization has left, and the files are half of what float32 would take.
BYTES_PER_WEIGHT = 2


def check_magic(gguf: Path) -> None:
    """Refuse a file that is no GGUF.

    Raises:
        UserError: If it cannot be read or does not begin as one.
    """
    try:
        with gguf.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise UserError(f"{gguf} cannot be read: {error.strerror}.", "Check the path and its permissions.") from error
    if magic != GGUF_MAGIC:
        hint = "Give a GGUF file, or a directory with safetensors weights."
        if (gguf.parent / "config.json").is_file():
            hint = f"Give the directory that it is in: {gguf.parent}."
        raise UserError(f"{gguf} is not a GGUF file.", hint)


def convert_gguf(
    gguf: Path,
    target: Path,
    progress: Progress,
    record: dict[str, Any],
    adjust: Callable[[Any, Any], None] | None = None,
) -> Path:
    """Dequantize a GGUF file into a directory of safetensors, tokenizer, chat template and generation config.

    The directory appears whole or not at all; the caller holds its lock.

    Args:
        gguf: The file.
        target: The directory to make; one that is there already is replaced.
        progress: Told what goes on; it may raise to give up.
        record: Kept in ``localtune.json``, together with the sizes of the files.
        adjust: Called with the model and the tokenizer before they are saved.

    Raises:
        UserError: If the file is damaged or of an unsupported architecture, or the disk is full.
    """
    check_magic(gguf)
    paths.make_private_dir(target.parent)
    with partial_directory(target) as partial:
        # Alone in a directory, so that nothing that lies beside the file (a config, a tokenizer) is read with it.
        with tempfile.TemporaryDirectory(prefix="source-", dir=partial) as alone:
            source = Path(alone) / "model.gguf"
            source.symlink_to(gguf.absolute())
            model, tokenizer = _read(source, gguf, progress)
            if adjust is not None:
                adjust(model, tokenizer)
            weights = sum(parameter.numel() for parameter in model.parameters())
            require_space(partial, weights * BYTES_PER_WEIGHT)
            progress("writing the weights", None, None)
            _save(model, tokenizer, partial)
        sizes = {}
        for path in sorted(partial.iterdir()):
            path.chmod(paths.FILE_MODE)
            fsync_file(path)
            sizes[path.name] = path.stat().st_size
        write_atomic(partial / RECORD_NAME, json.dumps({**record, "files": sizes}, indent=1) + "\n")
    return target


def _read(source: Path, shown: Path, progress: Progress) -> tuple[Any, Any]:
    """The dequantized model and its tokenizer."""
    progress("importing transformers", None, None)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = str(source.parent)
    # Reading a file that anyone may have made fails in as many ways as there are checks in the reader.
    try:
        progress("reading the tokenizer", None, None)
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=source.name, local_files_only=True)
        progress("dequantizing the weights", None, None)
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            gguf_file=source.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
    except MemoryError as error:
        raise UserError(f"There is not enough memory to convert {shown}.", "Close other programs.") from error
    except Exception as error:
        raise UserError(
            f"transformers cannot read {shown}: {one_line(str(error), 300) or type(error).__name__}.",
            "Its architecture may not be supported: give a directory with safetensors weights instead.",
        ) from error
    return model, tokenizer


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Save both without what only described the GGUF file."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    # The GGUF's metadata and the loader leave names and paths that mean nothing to who loads the directory.
    vars(model.config).pop("_model_name_or_path", None)
    for name in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(name, None)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.config.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    try:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    except SafetensorError as error:
        # The writer reports the operating system's error in words only.
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number)) from error
