"""Conversion of GGUF files to directories that transformers trains from: read once, dequantized, kept as safetensors.

The 16-bit model, up to four times as large as the file, is in memory one tensor at a time: dequantized tensors go to a
file in the new directory, and from there to the safetensors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core import paths
from core.directories import Progress, disk_error, exclusive_lock, require_space, whole_directory
from core.errors import UserError, is_panic
from core.hardware import cpu
from core.models.architecture.gguf_header import GgufHeader, check_gguf
from core.models.description import RECORD_NAME, read_record
from core.models.find import CHECKED, converted_stem, gguf_identity
from core.text import one_line
from core.units import format_bytes
from core.worker.model.completeness import check_loaded, check_size, reading_in_turn, tell

#: Bytes of a dequantized weight on disk: bfloat16, the usual dtype of published models. The rounding is far below the
#: error of the GGUF's own quantization, and the files are half the size of float32.
BYTES_PER_WEIGHT = 2
#: Peak bytes in memory per number of a tensor during conversion: 32 bits as read and again in its place, then 16;
#: stacked experts are copied once more.
BYTES_AT_WORK, BYTES_AT_WORK_STACKED = 10, 16
#: The largest safetensors file; some versions of its writer hold a whole file in memory.
SHARD = "4GB"
_CHUNK = 1 << 20
#: Tensors without weights: factors of the rotary embedding, which transformers derives from the configuration.
_COMPUTED = re.compile(r"(^|\.)rope_(freqs|factors_long|factors_short)\.weight$")
_AGAIN = "Take the file again from where the model is from."


def convert_gguf(
    gguf: Path,
    header: GgufHeader,
    target: Path,
    progress: Progress,
    record: dict[str, Any],
    adjust: Callable[[Any, Any], None] | None = None,
) -> Path:
    """Dequantize a GGUF file into a directory of safetensors, tokenizer, chat template and generation config.

    The directory appears complete or not at all; the caller holds its lock.

    Args:
        gguf: The file.
        header: Its header, checked.
        target: The directory to make; an existing one is replaced.
        progress: Called with each stage; it may raise to cancel.
        record: Content of ``localtune.json``, together with the sizes of the files.
        adjust: Called with the model and the tokenizer before they are saved.

    Raises:
        UserError: If the file is damaged or of an unsupported architecture, or the disk is full.
    """
    paths.make_private_dir(target.parent)
    try:
        with whole_directory(target) as directory:
            needed = sum(tensor.elements for tensor in header.tensors.values()) * BYTES_PER_WEIGHT
            # Once as read, and once as safetensors.
            require_space(directory, 2 * needed, "the converted model")
            _require_memory(gguf, header)
            with _alone(gguf, directory) as source:
                model, tokenizer = _read(source, gguf, header, progress)
                if adjust is not None:
                    adjust(model, tokenizer)
                progress("writing the weights", None, None)
                _save(model, tokenizer, directory)
            sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir())}
            content = {**record, CHECKED: True, "files": sizes}
            (directory / RECORD_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise disk_error(target.parent, error) from error
    return target


def convert_once(gguf: Path, progress: Progress) -> Path:
    """The directory that a GGUF file is converted to; one from the same bytes at another path is used again.

    Args:
        gguf: The file.
        progress: Called with each stage; it may raise to cancel.

    Raises:
        UserError: As :func:`convert_gguf`.
    """
    header, identity = check_gguf(gguf), gguf_identity(gguf)
    digest = hash_file(gguf, progress, "checking the GGUF file")
    target = paths.make_private_dir(paths.models_dir()) / f"{converted_stem(gguf)}-{digest[:12]}"
    with exclusive_lock(target, progress):
        if (read_record(target) or {}).get(CHECKED):
            return target
        return convert_gguf(gguf, header, target, progress, {"source": "gguf", "identity": identity, "sha256": digest})


def hash_file(path: Path, progress: Progress, detail: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if done % (16 * _CHUNK) == 0:
                progress(detail, done, total)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(gguf: Path, inside: Path) -> Iterator[Path]:
    """The file alone in a directory, so that no file beside it (a config, a tokenizer) is read with it."""
    with tempfile.TemporaryDirectory(prefix="source-", dir=inside) as alone:
        source = Path(alone) / "model.gguf"
        source.symlink_to(gguf.absolute())
        yield source


@contextlib.contextmanager
def _reading_explained(shown: Path) -> Iterator[None]:
    # A file from anyone fails in as many ways as there are checks in the reader.
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _unreadable(shown, error) from error
    except MemoryError as error:
        raise UserError(f"There is not enough memory to convert {shown}.", "Close other programs.") from error
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise _unreadable(shown, error) from error


def _unreadable(shown: Path, error: BaseException) -> UserError:
    return UserError(
        f"transformers cannot read {shown}: {one_line(str(error), 300).rstrip('.') or type(error).__name__}.",
        "Its architecture may not be supported: give a directory with safetensors weights instead.",
    )


def _require_memory(gguf: Path, header: GgufHeader) -> None:
    """Reject a file whose largest tensor cannot be dequantized in the free memory.

    Raises:
        UserError: If so.
    """
    needed = max(
        tensor.elements * (BYTES_AT_WORK_STACKED if "_exps." in name else BYTES_AT_WORK)
        for name, tensor in header.tensors.items()
    )
    used, total = cpu.memory()
    if needed > total - used:
        raise UserError(
            f"Converting {gguf} takes {format_bytes(needed)} of memory for its largest tensor, and "
            f"{format_bytes(total - used)} are free.",
            "Close other programs, or give a directory with safetensors weights.",
        )


def _read(source: Path, shown: Path, header: GgufHeader, progress: Progress) -> tuple[Any, Any]:
    """The dequantized model and its tokenizer."""
    progress("importing transformers", None, None)
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = str(source.parent)
    with _reading_explained(shown):
        progress("comparing the weights with the architecture", None, None)
        model = _describe(source, shown, header)
        progress("reading the tokenizer", None, None)
        tokenizer = AutoTokenizer.from_pretrained(directory, gguf_file=source.name, local_files_only=True)
        progress("dequantizing the weights", None, None)
        architecture = str(header.metadata["general.architecture"])
        load = _load_by_mapping if is_gguf_arch_supported(architecture) else _load_by_processor
        model, loading = load(source, model, architecture)
        check_loaded(shown, model, loading, {}, {}, _AGAIN)
    return model, tokenizer


def _load_by_mapping(source: Path, described: Any, _architecture: str) -> tuple[Any, Any]:
    """The model by transformers' lazy loader, and its loading report."""
    import torch
    from transformers import GgufConfig

    from core.worker.model.spill import Spill, parameters_spilled

    spill = Spill(source.with_name("weights"))
    with parameters_spilled(spill), reading_in_turn():
        loaded: tuple[Any, Any] = type(described).from_pretrained(
            str(source.parent),
            config=described.config,
            gguf_file=source.name,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            local_files_only=True,
        )
    return loaded


def _load_by_processor(source: Path, described: Any, architecture: str) -> tuple[Any, Any]:
    """The model by transformers' processors of tensors of older architectures, and its loading report. Transformers'
    own reader for these holds all tensors before it builds the model.
    """
    import numpy as np
    import torch
    from gguf import GGUFReader, dequantize
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
        load_gguf_checkpoint,
    )

    from core.worker.model.spill import Spill, SpilledTensors

    tensors = SpilledTensors(Spill(source.with_name("weights")), torch.bfloat16)
    parsed: dict[str, Any] = load_gguf_checkpoint(str(source), return_tensors=False) | {"tensors": tensors}
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=parsed["config"])
    names: dict[str, str] = get_gguf_hf_weights_map(described, processor)
    for tensor in GGUFReader(str(source)).tensors:
        result = processor.process(
            weights=dequantize(tensor.data, tensor.tensor_type),
            name=tensor.name,
            tensor_key_mapping=names,
            parsed_parameters=parsed,
        )
        if result.name in names:
            tensors[names[result.name]] = torch.from_numpy(np.require(result.weights, requirements=["C", "W"]))
    loaded: tuple[Any, Any] = type(described).from_pretrained(
        None,
        config=described.config,
        state_dict=dict(tensors),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.bfloat16,
    )
    return loaded


def _describe(source: Path, shown: Path, header: GgufHeader) -> Any:
    """The model of a file without its weights, which match its architecture by the header.

    Raises:
        UserError: If they do not match; it names them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.gguf.utils import is_gguf_arch_supported

    config = AutoConfig.from_pretrained(str(source.parent), gguf_file=source.name, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    check_size(model, shown, sum(tensor.elements for tensor in header.tensors.values()))
    architecture = str(header.metadata["general.architecture"])
    if not is_gguf_arch_supported(architecture):
        _check_names(model, architecture, shown, header)
    return model


def _check_names(model: Any, architecture: str, shown: Path, header: GgufHeader) -> None:
    """Check that a file has the weights of its architecture, for the loader of transformers that silently skips unknown
    ones.

    Raises:
        UserError: If it does not.
    """
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config={})
    wanted: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    # Stacked experts are mapped without the suffix that they have in the file.
    found = {
        short if (short := name.removesuffix(".weight")) in wanted else name: tensor
        for name, tensor in header.tensors.items()
    }
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [name for name, ours in wanted.items() if name not in found and ours not in tied]
    if missing:
        raise UserError(f"{shown} lacks weights of its architecture: {tell(missing)}.", _AGAIN)
    unknown = [name for name in found if name not in wanted and not _COMPUTED.search(name)]
    if unknown:
        raise UserError(f"{shown} has weights that its architecture does not take: {tell(unknown)}.", _AGAIN)
    sizes = {processor.preprocess_name(name): tensor.numel() for name, tensor in model.state_dict().items()}
    parts: dict[str, list[str]] = {}
    for name, ours in wanted.items():
        if name in found and ours in sizes:
            parts.setdefault(ours, []).append(name)
    wrong = [
        f"{' and '.join(names)} ({', '.join(str(found[name]) for name in names)} in place of {sizes[ours]:,} numbers)"
        for ours, names in parts.items()
        if sum(found[name].elements for name in names) != sizes[ours]
    ]
    if wrong:
        raise UserError(f"{shown} has weights of other shapes than its architecture: {tell(wrong)}.", _AGAIN)


def _save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Save both without the traces of the GGUF file."""
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    # The GGUF's metadata and the loader leave names and paths that are meaningless outside this conversion.
    vars(model.config).pop("_model_name_or_path", None)
    for name in ("is_local", "local_files_only", "gguf_file"):
        tokenizer.init_kwargs.pop(name, None)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else model.config.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    try:
        model.save_pretrained(directory, max_shard_size=SHARD)
        tokenizer.save_pretrained(directory)
    except SafetensorError as error:
        # The writer reports the operating system's error as text only.
        number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        raise OSError(number, os.strerror(number)) from error
