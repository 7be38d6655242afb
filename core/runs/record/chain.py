"""The hash chain of a run, ``chain.jsonl``: inputs and outputs, each link sealing the links before it.

A link is a line of JSON: ``n`` (counted from 0), ``kind``, ``t`` (Unix seconds), ``events`` (the lines of
``events.jsonl`` since the link before), ``body`` (by kind), ``prev`` (the ``link`` of the line before, 64 zeros for the
first) and ``link``, the SHA-256 of all other fields in canonical JSON. The last ``link`` is the head: a user who has
written it down can verify everything before it.

=============  ========================================================================================================
``start``      a worker has rows and model ready: configuration, base, rows, files, machine, software, the checkpoint it
               continues from
``checkpoint`` a checkpoint is durable: its whole manifest, which has the hash of each file
``rollback``   the run has gone back to a step within its process
``parked``     the device was given back
``result``     the adapter or the model was written: the hash of each file
``end``        how the run ended
=============  ========================================================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO, StringIO
from pathlib import Path
from typing import Any

from core.beneath import open_beneath
from core.runs.record.state import read_lines
from core.small_files import open_regular, parse_json

CHAIN_NAME = "chain.jsonl"
#: Predecessor of the first link.
NOTHING = "0" * 64
#: Hexadecimal digits of a line or row, to find a changed one; links seal them by SHA-256.
SHORT = 6
#: Most bytes of a link; a manifest has 16 MiB at most, and is the largest part of one.
LINK_LIMIT = 32 << 20
#: Most lines of ``events.jsonl`` that a link seals, so that their digits leave room for a manifest; the next link seals
#: those after them.
SEALED_LINES = 2_500_000
_BLOCK = 1 << 20
#: Above every count of links and every offset in a file.
_MOST = 1 << 62


class DamagedLinkError(ValueError):
    """An invalid or changed line of a chain; the message has the reason."""


@dataclass(frozen=True)
class SealedEvents:
    """The part of ``events.jsonl`` that a link seals."""

    begin: int
    """Offset in bytes, of the beginning of a line."""
    end: int
    sha256: str
    lines: str
    """:data:`SHORT` digits of the SHA-256 of each line, one after the other."""


@dataclass(frozen=True)
class Link:
    """A link whose digest is correct."""

    n: int
    kind: str
    t: float
    events: SealedEvents
    body: dict[str, Any]
    prev: str
    link: str


class Chain:
    """Writes the chain of a run; for one process at a time, and one thread.

    Args:
        directory: Directory of the run.
        events: Its event record.
    """

    def __init__(self, directory: Path, events: Path) -> None:
        self._directory, self._events = directory, events
        self._n, self._prev, self._sealed = 0, NOTHING, 0
        self._waiting: list[bytes] = []
        self._size: int | None = None

    def append(self, kind: str, body: dict[str, Any]) -> None:
        """Add a link, durably. If it cannot be written, it is kept and written before the next.

        Args:
            kind: Kind of the link.
            body: As JSON.

        Raises:
            OSError: If it cannot be written now.
        """
        if self._size_now() != self._size and not self._waiting:
            self._open()  # the first time, or when another process of the run has written meanwhile
        link: dict[str, Any] = {
            "n": self._n,
            "kind": kind,
            "t": time.time(),
            "events": seal_events(self._events, self._sealed),
            "body": body,
            "prev": self._prev,
        }
        link["link"] = digest_of(link)
        self._n, self._prev, self._sealed = self._n + 1, link["link"], link["events"]["to"]
        self._waiting.append(canonical(link) + b"\n")
        self._write()

    def _size_now(self) -> int | None:
        try:
            return os.stat(self._directory / CHAIN_NAME, follow_symlinks=False).st_size
        except FileNotFoundError:
            return None

    def _open(self) -> None:
        """Continue after the last whole link; a line that a killed worker left unfinished is cut off."""
        end, self._n, self._prev, self._sealed = 0, 0, NOTHING, 0
        try:
            descriptor = open_beneath(self._directory, CHAIN_NAME, os.O_RDWR)
        except FileNotFoundError:
            pass  # a chain that begins
        else:
            with FileIO(descriptor, "r+") as file:
                for line in read_lines(file, LINK_LIMIT):
                    if not line.is_ended:
                        break
                    end = line.end
                    self._follow(line.data)
                os.ftruncate(descriptor, end)
        self._size = end

    def _follow(self, line: bytes) -> None:
        try:
            link = parse_json(line, finite=False)
            number, digest, sealed = _count(link["n"]), str(link["link"]), _count(link["events"]["to"])
        except (ValueError, KeyError, TypeError):
            self._n += 1  # verification reports this line
        else:
            self._n, self._prev, self._sealed = number + 1, digest, sealed

    def _write(self) -> None:
        file = open_beneath(self._directory, CHAIN_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            before = os.fstat(file).st_size
            data = b"".join(self._waiting)
            try:
                if os.write(file, data) < len(data):
                    raise OSError(None, "only a part of the link could be written")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
            self._waiting.clear()
            self._size = before + len(data)
        finally:
            os.close(file)


def canonical(value: Any) -> bytes:
    """A value as canonical JSON, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest_of(link: dict[str, Any]) -> str:
    """The SHA-256 of a link without its ``link`` field, in hexadecimal."""
    return hashlib.sha256(canonical({name: value for name, value in link.items() if name != "link"})).hexdigest()


def short(data: bytes) -> str:
    """Short digest of a line or a row."""
    return hashlib.sha256(data).hexdigest()[:SHORT]


def seal_events(path: Path, begin: int) -> dict[str, Any]:
    """Field ``events`` of a link: the whole lines of an event record from an offset on, :data:`SEALED_LINES` at most.

    Raises:
        OSError: If they cannot be read.
    """
    digest, line, lines, count = hashlib.sha256(), hashlib.sha256(), StringIO(), 0
    sealed, at, end = digest.copy(), begin, begin
    for piece, is_end in _pieces(path, begin):
        line.update(piece)
        digest.update(piece + b"\n" if is_end else piece)
        at += len(piece) + is_end
        if is_end:
            lines.write(line.hexdigest()[:SHORT])
            line, sealed, end, count = hashlib.sha256(), digest.copy(), at, count + 1
            if count == SEALED_LINES:
                break
    return {"from": begin, "to": end, "sha256": sealed.hexdigest(), "lines": lines.getvalue()}


def digits_of_lines(path: Path) -> Iterator[str]:
    """:data:`SHORT` digits of each whole line of a file.

    Raises:
        OSError: If it cannot be read.
    """
    line = hashlib.sha256()
    for piece, is_end in _pieces(path, 0):
        line.update(piece)
        if is_end:
            yield line.hexdigest()[:SHORT]
            line = hashlib.sha256()


def _pieces(path: Path, begin: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of a file's lines, each with True if it ends its line: a line may be longer than a piece."""
    with open_regular(path) as file:
        file.seek(begin)
        while block := file.read(_BLOCK):
            *whole, rest = block.split(b"\n")
            for piece in whole:
                yield piece, True
            yield rest, False


def read_links(path: Path) -> Iterator[Link | DamagedLinkError]:
    """The links of a chain; in place of a damaged link, the error.

    Raises:
        OSError: If it cannot be read.
    """
    prev, sealed = NOTHING, 0
    with open_regular(path) as file:
        for number, line in enumerate(read_lines(file, LINK_LIMIT), 1):
            if not line.is_ended and not line.is_cut:
                # A link is written at once: a torn one was never sealed, and the next worker cuts it off.
                return
            try:
                if line.is_cut:
                    raise DamagedLinkError("it is too long for a link")
                link = parse_link(line.data)
                if link.n != number - 1:
                    raise DamagedLinkError(f"it is link {link.n}: links were removed, added or moved")
                if link.prev != prev:
                    raise DamagedLinkError("it does not follow from the line before")
                if link.events.begin != sealed or link.events.end < sealed:
                    raise DamagedLinkError("it leaves out a part of events.jsonl")
                prev, sealed = link.link, link.events.end
                yield link
            except DamagedLinkError as error:
                yield DamagedLinkError(f"{CHAIN_NAME}, line {number}: {error}")
                return


def parse_link(line: bytes) -> Link:
    """A line of a chain.

    Raises:
        DamagedLinkError: If it is invalid, or its digest does not match its content.
    """
    try:
        found = parse_json(line, finite=False)
        events = found["events"]
        sealed = SealedEvents(_count(events["from"]), _count(events["to"]), str(events["sha256"]), str(events["lines"]))
        link = Link(
            _count(found["n"]),
            str(found["kind"]),
            float(found["t"]),
            sealed,
            dict(found["body"]),
            str(found["prev"]),
            str(found["link"]),
        )
        is_sound = digest_of(found) == link.link
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedLinkError("it is not a link") from error
    if not is_sound:
        raise DamagedLinkError("its digest is not that of its content: it was changed")
    return link


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ValueError("no count")
    return value


def chain_head(directory: Path) -> str | None:
    """The last readable link of a run's chain; None without one."""
    head = None
    try:
        for link in read_links(directory / CHAIN_NAME):
            head = link.link if isinstance(link, Link) else head
    except OSError:
        return None
    return head
