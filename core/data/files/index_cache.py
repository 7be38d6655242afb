"""Row index cache: the byte ranges of the rows of large files, kept for the next time they are opened.

An index is a file under the home directory's ``cache/index``, named for the path. It is used only for the very file it
was made from (device, inode, size, time of modification), and only if its checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import time
from array import array
from pathlib import Path

from core.atomic import write_atomic
from core.data.files.layout import Layout
from core.data.files.scanners import Spans
from core.data.files.source import Identity, Source
from core.errors import UserError
from core.paths import home, make_private_dir

#: Smallest file whose index is kept, in bytes; smaller ones are indexed at once.
SMALLEST = 16 << 20
#: Number of indexes kept, the newest ones.
KEPT = 64

_MAGIC = b"LTROWS1\n"
# Device, inode, size, modified, first offset, rows, kind, delimiter, nested.
_HEADER = struct.Struct("<8sQQQQQQ8s1s?")
_DIGEST = hashlib.blake2b().digest_size
# A file changed twice within a tick of its clock looks the same; an index of one so young is not kept.
_SETTLED_SECONDS = 2.0


def load_index(source: Source, layout: Layout) -> Spans | None:
    """The kept index of a file; None if there is none that is valid."""
    if source.size < SMALLEST:
        return None
    path = _path_of(source)
    try:
        with path.open("rb") as file:
            found = file.read(_HEADER.size)
            if len(found) != _HEADER.size:
                return None
            count = _HEADER.unpack(found)[6]
            if found != _header(source.identity, layout, count) or path.stat().st_size != _size(count):
                return None
            spans, digest = Spans(), hashlib.blake2b(found)
            for column in (spans.starts, spans.ends, spans.lines):
                column.fromfile(file, count)
                digest.update(memoryview(column))
            if file.read(_DIGEST) != digest.digest() or not count or spans.ends[-1] > source.size:
                return None
    except (OSError, EOFError, struct.error):
        return None
    return spans


def save_index(source: Source, layout: Layout, spans: Spans) -> None:
    """Keep the index of a large file; a failure to write it only costs another indexing."""
    age = time.time() - source.identity.modified_ns / 1e9
    if source.size < SMALLEST or age < _SETTLED_SECONDS:
        return
    header = _header(source.identity, layout, len(spans))
    digest = hashlib.blake2b(header)
    parts = [header]
    for column in (spans.starts, spans.ends, spans.lines):
        digest.update(memoryview(column))
        parts.append(column.tobytes())
    # A full or read-only home costs the time of another index, nothing else.
    with contextlib.suppress(OSError, UserError):
        path = _path_of(source)
        make_private_dir(path.parent)
        write_atomic(path, b"".join([*parts, digest.digest()]), durable=False)
        _forget_old(path.parent)


def _path_of(source: Source) -> Path:
    name = hashlib.sha256(str(source.path.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return home() / "cache" / "index" / f"{name}.rows"


def _header(identity: Identity, layout: Layout, count: int) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        identity.device & (2**64 - 1),
        identity.inode,
        identity.size,
        identity.modified_ns & (2**64 - 1),
        layout.start,
        count,
        layout.kind.encode(),
        layout.delimiter.encode(),
        layout.nested,
    )


def _size(count: int) -> int:
    columns = (array("Q"), array("Q"), array("I"))
    return _HEADER.size + count * sum(column.itemsize for column in columns) + _DIGEST


def _forget_old(directory: Path) -> None:
    aged = sorted(directory.glob("*.rows"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in aged[KEPT:]:
        path.unlink(missing_ok=True)
