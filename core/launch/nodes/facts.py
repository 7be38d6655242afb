"""Facts of a machine that have to be the same on all machines of a run: the software, the base model, the rows.

Nothing here imports torch: the versions are those of the installed packages, and the model's hash is that of its files,
kept from run to run (:mod:`core.models.fingerprint`).
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from core.config.schema import Config
from core.data.files.shards import list_shards, split_reference
from core.data.registries.resolve import flat_sources
from core.errors import UserError
from core.models.find import find_model, missing_model
from core.models.fingerprint import BaseFingerprint
from core.runs.record.state import hostname
from core.small_files import hash_file
from core.text import one_line

#: Packages whose versions decide what is computed, or how it is sent.
PACKAGES = ("localtune-tui", "torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors")
_SOURCE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class MachineFacts:
    """Software, model and data of a run, as one machine has them.

    Args:
        host: Its own name.
        software: Version by name of the package; ``python`` up to its second number, ``code`` is the hash of this
            program's source.
        model: The base model's hash over all its files.
        files: SHA-256 by name of the file, as the configuration of the machine that asked names it.
        address: Its address towards the head; empty on the head itself.
    """

    host: str
    software: dict[str, str]
    model: str
    files: dict[str, str]
    address: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> MachineFacts:
        """From JSON of another machine.

        Raises:
            ValueError: If it is none.
        """
        try:
            return cls(
                host=_text(value["host"]),
                software=_table(value["software"]),
                model=_text(value["model"]),
                files=_table(value["files"]),
                address=_text(value["address"]),
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("no facts of a machine") from error


def gather(config: Config, named: Config) -> MachineFacts:
    """The facts of this machine; reads the whole model the first time, which takes minutes for a large one.

    Args:
        config: The configuration with the paths of this machine.
        named: The same with the paths of the machine that asked, by which the files are named.

    Raises:
        UserError: If the model or a file is missing or cannot be read.
    """
    directory = find_model(config.model.base)
    if directory is None:
        raise missing_model(config.model.base)
    fingerprint = BaseFingerprint(directory)
    files = {name: _hash(path) for name, path in _files(config, named)}
    return MachineFacts(hostname(), software(), fingerprint.value, files)


def software() -> dict[str, str]:
    """The versions that are installed here, by name; of a package that is not, ``none``."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"code": _code()}


def _code() -> str:
    """The first digits of the hash over this program's own source: a version under development changes daily."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCE.rglob("*.py")):
        digest.update(f"{path.relative_to(_SOURCE)}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _files(config: Config, named: Config) -> Iterator[tuple[str, Path]]:
    """The files of rows, templates and prompts, each by the name that the asking machine has for it."""
    for own, asked in zip(_references(config), _references(named), strict=True):
        for source in flat_sources(own, config.data.format, config.data.columns):
            path, split = split_reference(source.path)
            listed = source.files or (list_shards(path, split) if os.path.isdir(path) else ())
            registry = own.rpartition("#")[0] or own
            if os.path.isfile(registry) and str(path) not in (own, registry):
                yield f"{asked}: the list itself", Path(registry)
            if not listed:
                yield (asked if str(path) == own else f"{asked}: {path.name}"), path
            for file in listed:
                yield f"{asked}: {file.relative_to(path)}", file
    for own_file, asked_file in (
        (config.template.file, named.template.file),
        (config.eval.prompts, named.eval.prompts),
    ):
        if own_file and asked_file:
            yield asked_file, Path(own_file)


def _references(config: Config) -> list[str]:
    data = config.data
    return [
        entry for value in (data.train, data.eval) for entry in ([value] if isinstance(value, str) else value or [])
    ]


def _hash(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise UserError(
            f"{one_line(str(path), 200)} cannot be read: {error.strerror}.", "Copy the file there, to the same path."
        ) from error


def _table(value: Any) -> dict[str, str]:
    return {_text(key): _text(item) for key, item in value.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return one_line(value, 4000)
