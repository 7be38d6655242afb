"""Unpacking helper: a process that unpacks a file to text, ``python -m core.data.files.unpack PACKING SOURCE SPOOL``.

It decompresses gzip and zstd, converts text of other encodings to UTF-8, and Parquet, Arrow and JSON objects of arrays
to JSON Lines. It is a separate
process because pyarrow imports numpy, which the app must not load, and because a damaged or malicious file may crash
it or exhaust its memory.

It reads from the descriptor SOURCE and appends to SPOOL. For each line on standard input it unpacks a few megabytes
and answers with a JSON object, ``{"bytes", "done", "end"}`` or ``{"bytes", "error", "hint"}``. It exits at the end of
standard input.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

from core.data.files.encodings import recoded
from core.data.files.source import HEAD_BYTES, is_column_arrays
from core.helper import tie_to_parent
from core.paths import home
from core.sandbox.limits import TimeLimitError, confine, cpu_limit

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes unpacked per request.
PORTION = 4 << 20
#: Largest ratio of text to file, once the text exceeds ``FREE_BYTES``.
LARGEST_RATIO = 250
FREE_BYTES = 256 << 20
#: Most bytes of text.
LARGEST_BYTES = 128 << 30
#: Bytes left free on the disk.
RESERVE = 512 << 20

#: CPU seconds per portion. A compressed table is decompressed whole before its first row is read.
_PORTION_SECONDS = 600

_READ = 1 << 20
_MEMORY_LIMIT = 4 << 30
_COLUMN_ARRAYS_LIMIT = 256 << 20
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1024
# Batches read ahead of the writer.
_AHEAD = 2
_DAMAGED = "Get the file again, or write it again."


class UnpackError(Exception):
    """A defect of the file: the end of a sentence that begins with the file's name, and a hint."""

    def __init__(self, message: str, hint: str = _DAMAGED) -> None:
        super().__init__(message)
        self.hint = hint


def gunzip(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed members of a gzip file, in pieces."""
    machine = zlib.decompressobj(31)
    data = file.read(_READ)
    while data:
        try:
            yield machine.decompress(data, _READ)
        except zlib.error as error:
            raise UnpackError(f"is damaged: {error}") from error
        data = machine.unconsumed_tail or (b"" if machine.eof else file.read(_READ))
        if machine.eof:
            # Another member may follow, or zero padding.
            data = (machine.unused_data or file.read(_READ)).lstrip(b"\0")
            if data:
                machine = zlib.decompressobj(31)
    if not machine.eof:
        # Buffered bytes come before the error.
        yield machine.flush()
        raise UnpackError("ends in the middle of its gzip data")


def unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Decompressed frames of a zstd file, in pieces."""
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd") as stream:
            while piece := stream.read(_READ):
                yield piece
    except (OSError, pa.ArrowException) as error:
        raise UnpackError(f"is damaged: {_first_line(error)}") from error


def _parquet_batches(file: BinaryIO) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Rows of a Parquet file, in batches, each with the share of the file done."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, pre_buffer=False)
        _refuse_twins(table.schema_arrow.names)
        total, done = max(table.metadata.num_rows, 1), 0
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            each = max(about.total_byte_size // max(about.num_rows, 1), 1)
            size = max(min(_BATCH_BYTES // each, _BATCH_ROWS), 1)
            for batch in table.iter_batches(batch_size=size, row_groups=[group], use_threads=False):
                done += batch.num_rows
                for part in _parts(batch):
                    yield part, done / total
    except (OSError, pa.ArrowException) as error:
        raise UnpackError(f"cannot be read as Parquet: {_first_line(error)}") from error


def _arrow_batches(file: BinaryIO) -> Iterator[tuple[pa.RecordBatch, float]]:
    """Rows of an Arrow file or stream, as of :func:`_parquet_batches`."""
    import pyarrow as pa

    size = max(os.fstat(file.fileno()).st_size, 1)
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    try:
        reader = pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)
        _refuse_twins(reader.schema.names)
        count = reader.num_record_batches if is_file else 0
        batches = map(reader.get_batch, range(count)) if is_file else iter(reader)
        for number, batch in enumerate(batches, 1):
            share = number / count if is_file else file.tell() / size
            for part in _parts(batch):
                yield part, share
    except (OSError, pa.ArrowException) as error:
        raise UnpackError(f"cannot be read as Arrow: {_first_line(error)}") from error


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of a batch: a batch may be the whole file."""
    each = max(batch.nbytes // max(batch.num_rows, 1), 1)
    step = max(min(_BATCH_BYTES // each, _BATCH_ROWS), 1)
    return (batch.slice(start, step) for start in range(0, batch.num_rows, step))


def _converted(batches: Iterator[tuple[pa.RecordBatch, float]]) -> Iterator[tuple[bytes, float]]:
    """Batches as JSON Lines, converted by a thread while the next batch is read; pyarrow releases the GIL for both."""
    import pyarrow as pa

    from core.data.files.arrow_text import json_lines

    # The default memory pool of pyarrow would keep tens of megabytes more.
    pa.set_memory_pool(pa.system_memory_pool())
    waiting: deque[tuple[Future[bytes], float]] = deque()
    failure: Exception | None = None
    with ThreadPoolExecutor(1) as pool:
        while True:
            try:
                batch, share = next(batches)
            except StopIteration:
                break
            except Exception as error:  # the file is damaged; rows before the damage come first
                failure = error
                break
            waiting.append((pool.submit(json_lines, batch, plain), share))
            if len(waiting) > _AHEAD:
                done, share = waiting.popleft()
                yield done.result(), share
        for done, share in waiting:
            yield done.result(), share
    if failure is not None:
        raise failure


def column_lines(file: BinaryIO) -> Iterator[tuple[bytes, float]]:
    """Rows of a JSON object of arrays, one per column, as JSON Lines."""
    if os.fstat(file.fileno()).st_size > _COLUMN_ARRAYS_LIMIT:
        raise UnpackError("is a JSON object of arrays of more than 268 MB", "Write it as JSON Lines.")
    try:
        columns = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UnpackError(f"is not JSON: {_first_line(error)}", "Fix it, or write it as JSON Lines.") from error
    if not isinstance(columns, dict) or not all(isinstance(value, list) for value in columns.values()):
        raise UnpackError("is one JSON object, and not all of its values are arrays", "Write one object a line.")
    lengths = {len(value) for value in columns.values()}
    if len(lengths) > 1:
        raise UnpackError(
            f"has columns of different lengths, from {min(lengths)} to {max(lengths)} rows", "Write one object a line."
        )
    names, total = list(columns), max(lengths, default=0)
    for start in range(0, total, _BATCH_ROWS):
        pages = (columns[name][start : start + _BATCH_ROWS] for name in names)
        rows = [dict(zip(names, cells, strict=True)) for cells in zip(*pages, strict=True)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Lone surrogates have no UTF-8; escaped, they make only their own row unreadable.
        yield text.encode("utf-8", "backslashreplace"), min(start + _BATCH_ROWS, total) / total


#: Rows of a table as JSON Lines, each piece with the share of the file done.
_TABLES: dict[str, Callable[[BinaryIO], Iterator[tuple[bytes, float]]]] = {
    "parquet": lambda file: _converted(_parquet_batches(file)),
    "arrow": lambda file: _converted(_arrow_batches(file)),
    "columns": column_lines,
}


def portions(packing: str, file: BinaryIO, whole: BinaryIO | None = None) -> Iterator[tuple[bytes, int]]:
    """Unpacked text of a file in pieces, each with the bytes of the file done so far.

    Args:
        packing: Its packing.
        file: The file.
        whole: An empty file for the decompressed table. A table has its metadata at its end, so a compressed one is
            decompressed whole first.

    Raises:
        UnpackError: If it is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    compression, _, inner = packing.partition("+")
    if compression in _TABLES:
        for text, share in _TABLES[compression](file):
            yield text, int(share * size)
        return

    def done() -> int:
        return size if file.closed else file.tell()  # pyarrow closes it at its end

    unpacked = {"gzip": gunzip, "zstd": unzstd}.get(compression)
    pieces = recoded(file, compression) if unpacked is None else unpacked(file)
    if inner == "json":
        # The beginning shows an object of arrays.
        first = b""
        for piece in pieces:
            first += piece
            if len(first) >= HEAD_BYTES:
                break
        pieces = itertools.chain([first], pieces)
        inner = "columns" if is_column_arrays(first) else ""
    if not inner:
        for piece in pieces:
            yield piece, done()
        return
    if whole is None:
        raise ValueError("There is no file for the table.")
    spool = Spool(whole.fileno())
    for piece in pieces:
        spool.write(piece, done())
        yield b"", 0
    whole.seek(0)
    for text, share in _TABLES[inner](whole):
        yield text, int(share * size)


def plain(value: Any) -> Any:
    """A value that JSON cannot represent, as a string or a list."""
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return list(value) if isinstance(value, (set, tuple)) else str(value)


class Spool:
    """Output file of the helper, with limits on its size and on free disk space."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.written = 0

    def write(self, piece: bytes, done: int) -> None:
        """Append a piece of text.

        Raises:
            UnpackError: If the text is too large, or the disk has no room for it.
        """
        written = self.written + len(piece)
        too_dense = written > FREE_BYTES and written > LARGEST_RATIO * max(done, 1)
        if too_dense or written > LARGEST_BYTES:
            raise UnpackError(
                f"unpacks to more than {written / 1e9:.1f} GB from {done / 1e6:.3g} MB, which no dataset does",
                "If it is one, decompress it yourself.",
            )
        disk = os.fstatvfs(self._descriptor)
        if disk.f_bavail * disk.f_frsize < len(piece) + RESERVE:
            raise UnpackError("unpacks to more than the disk of LOCALTUNE_HOME has room for", "Free some space on it.")
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.written = written


def serve(packing: str, source: int, spool: Spool, whole: BinaryIO | None) -> None:
    """Answer requests until the file or standard input ends; see :func:`portions`."""
    with os.fdopen(source, "rb") as file:
        pieces = portions(packing, file, whole)
        for _ in sys.stdin.buffer:
            begun, done, end = spool.written, 0, False
            try:
                with cpu_limit(_PORTION_SECONDS):
                    while spool.written - begun < PORTION:
                        piece = next(pieces, None)
                        if piece is None:
                            end = True
                            break
                        done = piece[1]
                        spool.write(*piece)
            except UnpackError as error:
                _answer({"bytes": spool.written, "error": str(error), "hint": error.hint})
                return
            except TimeLimitError:
                reason = f"takes more than {_PORTION_SECONDS} s for {PORTION >> 20} MiB of text"
                _answer({"bytes": spool.written, "error": reason, "hint": _DAMAGED})
                return
            except MemoryError:
                _answer({"bytes": spool.written, "error": "needs more memory than it may have", "hint": _DAMAGED})
                return
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                _answer({"bytes": spool.written, "error": f"cannot be unpacked: {reason}", "hint": "Check the disk."})
                return
            except Exception as error:  # pyarrow raises anything for a damaged file
                reason = f"cannot be read: {_first_line(error)}"
                _answer({"bytes": spool.written, "error": reason, "hint": _DAMAGED})
                return
            _answer({"bytes": spool.written, "done": done, "end": end})
            if end:
                return


def _answer(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _refuse_twins(names: list[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for position, name in enumerate(names) if name in names[:position])
        raise UnpackError(f"has two columns called '{twice[:60]}'", "Give each column a name of its own.")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def main(arguments: list[str]) -> int:
    """Run the helper; returns the exit code."""
    packing, source, spool = arguments[0], int(arguments[1]), int(arguments[2])
    tie_to_parent()
    with contextlib.ExitStack() as kept:
        whole = None
        if "+" in packing:
            try:
                whole = kept.enter_context(tempfile.TemporaryFile(dir=home() / "cache"))
            except OSError as error:
                _answer({"bytes": 0, "error": f"cannot be unpacked: {error.strerror}", "hint": "Check the disk."})
                return 1
        # All files that it needs are open by now.
        confine(_MEMORY_LIMIT)
        serve(packing, source, Spool(spool), whole)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
