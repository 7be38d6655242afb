"""The installed transformers, read without importing it: its version, its architectures, and optional kernels that are
missing for a model's recurrent layers. Without them these layers go through PyTorch, with the same results.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.models.description import text_model_type, text_part
from core.models.tables import TABLES
from core.text import one_line

#: Files with the table of configuration classes by ``model_type``, and an entry of it in either form.
_TABLES = ("auto_mappings.py", "configuration_auto.py")
_ENTRY = re.compile(r'"([\w.-]+)"\s*[:,]\s*"(?!AutoConfig")\w+Config"')
#: Longest version that is parsed, in characters.
_LONGEST_VERSION = 40
#: Where a model's file in transformers names a kernel with its package.
_USE = re.compile(r'use_kernel_func_from_hub_with_fallback\(\s*"\w+",\s*"(\w+)"')
#: Kinds of layers without such kernels, in the lists of configurations.
_ATTENDING = re.compile(r"attention|moe|mlp|dense|sparse")
_LINEAR = re.compile(r"linear|mamba|conv|recurrent|hybrid")
_LAYER_LISTS = ("layer_types", "layers_block_type", "block_types")


def version_of(package: str) -> str:
    """Version of an installed package; empty if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def transformers_version() -> str:
    """Version of the installed transformers; empty if it is not installed."""
    return version_of("transformers")


@functools.cache
def known_model_types() -> frozenset[str]:
    """Every ``model_type`` that the installed transformers knows; empty if its table is not found."""
    if (models := _models()) is None:
        return frozenset()
    try:
        source = "".join((models / "auto" / name).read_text(encoding="utf-8") for name in _TABLES)
    except OSError:
        return frozenset()
    return frozenset(_ENTRY.findall(source))


def _models() -> Path | None:
    """The directory of transformers' models."""
    found = importlib.util.find_spec("transformers")
    return None if found is None or found.origin is None else Path(found.origin).parent / "models"


def newer_version(config: Mapping[str, Any]) -> str | None:
    """The version of transformers that a ``config.json`` was saved with, if it is newer than the installed one."""
    # Imported here: architectures, which the app imports, import this module.
    from packaging.version import InvalidVersion, Version

    said, installed = config.get("transformers_version"), transformers_version()
    if not isinstance(said, str) or len(said) > _LONGEST_VERSION or not installed:
        return None
    try:
        wanted = Version(said)
        # A development version's files are readable by the release with the same base version.
        return wanted.base_version if Version(wanted.base_version) > Version(installed) else None
    except InvalidVersion:
        return None


def check_known(config: Mapping[str, Any], directory: Path) -> None:
    """Check that the installed transformers knows the architecture of a ``config.json``, and that of its text part.

    Args:
        config: Its content, with a ``model_type``.
        directory: Name of the model in messages.

    Raises:
        UserError: If not; it says which version does, if the configuration says so.
    """
    known = known_model_types()
    for family in (config.get("model_type"), text_model_type(config)):
        if known and isinstance(family, str) and family not in known:
            shown, installed = one_line(family, 60), transformers_version()
            what = f"{directory} is of the architecture {shown}, which transformers {installed} does not know"
            if (newer := newer_version(config)) is None:
                hint = "Upgrade transformers if the model is newer than it, or choose another model."
                raise UserError(f"{what}.", hint)
            raise UserError(
                f"{what}; it was saved with transformers {newer}, which does.",
                f"Upgrade transformers: pip install --upgrade 'transformers>={newer}'.",
            )


@dataclass(frozen=True)
class Kernel:
    """An optional package of kernels.

    Args:
        package: Its name in imports.
        distribution: Its name for pip.
        without: PyTorch's replacement, in words.
    """

    package: str
    distribution: str
    without: str


KERNELS = {package: Kernel(package, **kernel) for package, kernel in TABLES["kernels"].items()}


def missing_kernels(config: Mapping[str, Any]) -> tuple[Kernel, ...]:
    """The kernels that transformers would use for a model's recurrent layers and that are not installed.

    Args:
        config: The content of ``config.json``.
    """
    part = text_part(dict(config))
    family = part.get("model_type")
    if not isinstance(family, str) or not _is_recurrent(part):
        return ()
    used = _kernels_of(family)
    return tuple(
        kernel for package, kernel in KERNELS.items() if package in used and importlib.util.find_spec(package) is None
    )


def tell_missing(kernels: tuple[Kernel, ...]) -> str:
    """A sentence that names missing kernels and their benefit; empty if none are missing."""
    if not kernels:
        return ""
    named = " and ".join(kernel.distribution for kernel in kernels)
    done = " and ".join(kernel.without for kernel in kernels)
    are = "is" if len(kernels) == 1 else "are"
    return (
        f"{named} {are} not installed, so PyTorch computes {done}: the results are the same, but it takes longer and "
        "more memory."
    )


def install_command(kernels: tuple[Kernel, ...]) -> str:
    """The command that installs kernels."""
    return f"pip install {' '.join(kernel.distribution for kernel in kernels)}"


def _is_recurrent(part: Mapping[str, Any]) -> bool:
    """True if a configuration has recurrent layers, or does not list its layers."""
    for name in _LAYER_LISTS:
        kinds = part.get(name)
        if isinstance(kinds, list) and kinds and all(isinstance(kind, str) for kind in kinds):
            return any(_LINEAR.search(kind) or not _ATTENDING.search(kind) for kind in kinds)
    return True


@functools.cache
def _kernels_of(family: str) -> frozenset[str]:
    """The packages that the file of a family in transformers names."""
    models, name = _models(), family.replace("-", "_")
    if models is None or not re.fullmatch(r"\w{1,80}", name):
        return frozenset()
    # A text part shares the file of the whole model: qwen3_5_moe_text is in qwen3_5_moe.
    while name:
        path = models / name / f"modeling_{name}.py"
        if path.is_file():
            return frozenset(_USE.findall(path.read_text(encoding="utf-8")))
        name = name.rpartition("_")[0]
    return frozenset()
