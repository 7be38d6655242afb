"""Files of the queue: ``queue.json``, the configurations of its entries, and the lock for changes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.config.document import ConfigDocument, dump_config
from core.config.rules.check import check_rules
from core.config.schema import Config, full_name
from core.errors import UserError
from core.lock_file import open_lock_file
from core.queue.book import Queue
from core.queue.entry import PENDING, QueueEntry, word
from core.small_files import read_small
from core.text import one_line

#: Largest file, in bytes.
LIMIT = 16 << 20


def queue_path() -> Path:
    """The file with the entries."""
    return paths.queue_dir() / "queue.json"


def config_path(entry_id: int) -> Path:
    """The configuration of an entry, as of the time when it was added, every value resolved."""
    return paths.queue_dir() / f"{entry_id}.toml"


def read_queue() -> Queue:
    """The present queue; empty without a file. Needs no lock, as the file is replaced atomically.

    Raises:
        UserError: If it cannot be read. Nothing is guessed: an entry wrongly taken for a waiting one would be trained
            twice.
    """
    path = queue_path()
    try:
        return Queue.loads(read_small(path, LIMIT).decode("utf-8"))
    except FileNotFoundError:
        return Queue()
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"The queue cannot be read from {path}: {one_line(cause, 200)}.",
            f"Mend the file, or move it away for an empty queue; the configurations are beside it in {path.parent}.",
        ) from error


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of the queue for a short time; others wait.

    Raises:
        UserError: If its directory cannot be written.
    """
    path = paths.make_private_dir(paths.queue_dir()) / "queue.lock"
    descriptor = open_lock_file(path)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def change(how: Callable[[Queue], Queue]) -> Queue:
    """Change the queue under its lock; returns the queue as written.

    Args:
        how: Makes the new queue from the present one; if it raises, nothing is written.

    Raises:
        UserError: If the queue cannot be read or written; it is then unchanged.
    """
    with locked():
        before = read_queue()
        after = how(before)
        if after != before:
            write_queue(after)
        return after


def write_queue(queue: Queue) -> None:
    """Replace ``queue.json``; the caller holds the lock.

    Raises:
        UserError: If it cannot be written; the old file is then unchanged.
    """
    _write(queue_path(), queue.dumps())


def add(entries: Sequence[tuple[QueueEntry, Config]], *, is_sweep: bool = False) -> list[QueueEntry]:
    """Append runs to the queue, all or none.

    Args:
        entries: Entries, which get their ids here, each with its checked configuration, paths absolute.
        is_sweep: Whether they are the variants of a sweep, which then gets an id.

    Returns:
        The entries as added.

    Raises:
        UserError: If the queue cannot be read or written.
    """
    with locked():
        queue = read_queue()
        made = [entry for entry, _ in entries]
        if is_sweep:
            queue, sweep = queue.with_sweep()
            made = [replace(entry, sweep=sweep) for entry in made]
        after = queue.with_added(made)
        added = list(after.entries[len(queue.entries) :])
        # Configurations first: an entry without one could not be started.
        try:
            for entry, (_, config) in zip(added, entries, strict=True):
                _write(config_path(entry.id), dump_config(config))
            write_queue(after)
        except BaseException:
            _forget_configurations(added)
            raise
        return added


def edit(entry_id: int, assignments: Sequence[str]) -> QueueEntry:
    """Change options of an entry that is not started yet; returns the entry.

    Args:
        entry_id: Its id.
        assignments: ``section.key=value``, the section left out where the key is unique; an empty value is the default.

    Raises:
        UserError: If it has been started, or an assignment or the new configuration is invalid; nothing is changed.
    """
    if wrong := next((assignment for assignment in assignments if "=" not in assignment), None):
        raise UserError(f"{one_line(wrong, 80)} has no value.", "Write an option and its value: rank = 32.")
    pairs = (assignment.partition("=") for assignment in assignments)
    changes = {full_name(name): value.strip() for name, _, value in pairs}
    with locked():
        queue = read_queue()
        entry = queue.entry(entry_id)
        if entry.state not in PENDING:
            raise UserError(f"Entry {entry_id} is {entry.state} and cannot be changed.", "Its run keeps its values.")
        document = ConfigDocument.load(config_path(entry_id))
        document.apply(f"{name}={value}" for name, value in changes.items() if value)
        for name in (name for name, value in changes.items() if not value):
            document.set(name, None)
        config = document.validate()
        if broken := next((found for found in check_rules(config) if found.level == "error"), None):
            raise UserError(broken.sentence, broken.hint)
        values = {name: document.get(name) if name in changes else value for name, value in entry.values.items()}
        before, now = (" ".join(map(word, varied.values())) for varied in (entry.values, values))
        overrides = (*entry.overrides, *(f"{name}={value}" for name, value in changes.items()))
        entry = replace(entry, name=entry.name.removesuffix(before) + now, overrides=overrides, values=values)
        _write(config_path(entry_id), dump_config(config))
        write_queue(queue.with_entry(entry))
        return entry


def _forget_configurations(entries: Sequence[QueueEntry]) -> None:
    """Remove the configurations of entries that did not get into the queue."""
    with contextlib.suppress(UserError, OSError):
        there = {entry.id for entry in read_queue().entries}
        for entry in entries:
            if entry.id not in there:
                config_path(entry.id).unlink(missing_ok=True)


def clear() -> int:
    """Remove ended entries and their configurations; returns their number.

    Raises:
        UserError: If the queue cannot be read or written.
    """
    with locked():
        before = read_queue()
        after = before.cleared()
        if after != before:
            write_queue(after)
        kept = {entry.id for entry in after.entries}
        for entry in before.entries:
            if entry.id not in kept:
                config_path(entry.id).unlink(missing_ok=True)
    return sum(entry.state != "removed" for entry in before.entries) - len(after.entries)


def read_entry_config(entry: QueueEntry) -> Config:
    """The configuration of an entry.

    Raises:
        UserError: If it is missing or invalid.
    """
    return ConfigDocument.load(config_path(entry.id)).validate()


def read_entry_text(entry: QueueEntry) -> str:
    """The text of an entry's configuration.

    Raises:
        UserError: If it cannot be read.
    """
    path = config_path(entry.id)
    try:
        return read_small(path, LIMIT).decode("utf-8")
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(f"{path} cannot be read: {one_line(cause, 200)}.", "Add the run anew.") from error


def _write(path: Path, text: str) -> None:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        around = one_line(text[max(error.start - 40, 0) : error.end + 40], 100)
        raise UserError(
            f"The queue cannot hold a name that is no UTF-8 text: {around}.", "Rename the file, or link to it."
        ) from error
    if len(data) > LIMIT:
        # It could not be read again.
        raise UserError(
            f"{path} would be larger than {LIMIT >> 20} MiB.",
            "Take out what has ended with 'localtune-tui queue clear', or put fewer runs into the queue.",
        )
    try:
        write_atomic(path, data)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}.", "Make room or fix its permissions."
        ) from error
