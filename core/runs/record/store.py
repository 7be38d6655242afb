"""Run directories: their files, names and labels; creating, listing and finding them, and writing to them.

A run's id and directory never change; its display name is in ``labels.json``. A run directory may come from anywhere,
so labels are read as untrusted text: up to a size, truncated, and safe to show. A link in it may lead anywhere, so it
is written to only if it consists of directories and plain files with a single name. The exception is ``checkpoints``,
which may link to another disk once the user has confirmed its target; the home remembers that.

The lock on ``worker.lock`` is held exactly as long as the worker lives. The launcher takes it, and the worker inherits
the open descriptor, so a second launcher never finds it free in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import tomli

from core import paths
from core.atomic import write_atomic
from core.beneath import open_beneath, unsafe_kind
from core.config.document import ConfigDocument, dump_config
from core.config.explain import nearest
from core.config.files import FileText
from core.config.schema import WEIGHT_METHODS, Config
from core.directories import disk_error, new_directory
from core.errors import UserError
from core.lock_file import try_lock_file
from core.paths import DIRECTORY_MODE
from core.redact import redact
from core.runs.record.events import Event, FinishedEvent, HardwareEvent, encode_event
from core.runs.record.sentences import slug_of
from core.runs.record.state import END_STATES, RunState, hostname, in_words, infer_state, last_events, memory_death
from core.small_files import read_json
from core.text import one_line

#: Most bytes of a Unix socket's path, with some margin (the kernel's limit is 108).
SOCKET_PATH_LIMIT = 100
#: Glob pattern of sockets outside of run directories.
RUNTIME_SOCKETS = "localtune-*.sock"
#: Prefix of directories made for a socket when there is no other safe place.
_MADE_PREFIX = "localtune-run-"


def socket_name(directory: Path) -> str:
    """Name of a run's socket outside of its run directory."""
    # A hash of the whole path: two homes may have equal ids, and long ids equal beginnings.
    return RUNTIME_SOCKETS.replace("*", hashlib.sha256(os.fsencode(directory)).hexdigest()[:16])


def runtime_dir() -> Path:
    """Directory of sockets whose paths in their run directories would be too long; see :func:`is_private`."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/localtune-{os.getuid()}")  # noqa: S108


def is_private(directory: Path) -> bool:
    """True if a directory is this user's, is not a link, and is closed to all other users."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    others = stat.S_IRWXG | stat.S_IRWXO
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & others


def _socket_places() -> list[Path]:
    """Parents for a private socket directory, best first; the path of a socket must be short."""
    return [Path(place) for place in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])]  # noqa: S108


def private_socket_path(path: Path) -> Path:
    """The path itself, if no other user can tamper with it; else one in a new directory of this user's.

    In a world-writable directory, another user may have placed anything under a predictable name.

    Args:
        path: Preferred path of the socket, in a run directory or in the runtime directory; its parents are made.

    Raises:
        OSError: If no such directory can be made anywhere.
    """
    with suppress(OSError):
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    is_safe = is_private(path.parent) if path.parent == runtime_dir() else _is_own(path.parent)
    if is_safe and len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    error: OSError = PermissionError(errno.EACCES, "its directory is not this user's alone", str(path))
    name = socket_name(path.parent)
    for place in _socket_places():
        # The name of the directory ends with eight random characters.
        if len(os.fsencode(place / f"{_MADE_PREFIX}12345678" / name)) > SOCKET_PATH_LIMIT:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix=_MADE_PREFIX, dir=place)) / name
        except OSError as failure:
            error = failure
    raise error


def _is_own(directory: Path) -> bool:
    """True if a directory is this user's and not writable by others."""
    try:
        status = directory.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def made_directories() -> list[Path]:
    """Directories made by :func:`private_socket_path` for this user that still exist."""
    return [place for parent in _socket_places() for place in parent.glob(f"{_MADE_PREFIX}*") if is_private(place)]


LABELS_NAME = "labels.json"
#: Format of the file; a reader ignores keys that it does not know.
LABELS_VERSION = 1
#: Largest file in bytes, and most characters of a display name, a tag and a note.
LABELS_LIMIT, NAME_LIMIT, TAG_LIMIT, NOTE_LIMIT = 32 << 10, 80, 32, 2000
#: Most tags of a run.
MOST_TAGS = 16
#: A tag is one word, so that several fit on a line and a filter can name one.
_TAG = re.compile(r"[^\s,#]{1,32}")


@dataclass(frozen=True)
class Labels:
    """The labels of a run; all of them may be empty."""

    name: str = ""
    """The display name, on one line."""
    tags: tuple[str, ...] = ()
    """Words, each once, in the order in which they were given."""
    note: str = ""
    """The note, on one line."""
    archived: bool = False
    """True if lists leave the run out unless they are asked for all."""
    result: int | None = None
    """The step of the checkpoint that is taken as the result; None for the result as the run wrote it."""


#: The labels of a run that nobody has labeled.
NO_LABELS = Labels()


def labels_path(directory: Path) -> Path:
    """The file with the labels of a run directory."""
    return directory / LABELS_NAME


def read_labels(directory: Path) -> Labels:
    """The labels of a run directory; empty without a readable file."""
    try:
        data: Any = read_json(labels_path(directory), LABELS_LIMIT)
    except (OSError, ValueError):
        return NO_LABELS
    if not isinstance(data, dict):
        return NO_LABELS
    tags = data.get("tags")
    words = [one_line(tag, TAG_LIMIT) for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return Labels(
        name=_label_text(data.get("name"), NAME_LIMIT),
        tags=tuple(dict.fromkeys(word for word in words if _TAG.fullmatch(word)))[:MOST_TAGS],
        note=_label_text(data.get("note"), NOTE_LIMIT),
        archived=data.get("archived") is True,
        result=step if type(step := data.get("result")) is int and step > 0 else None,
    )


def write_labels(directory: Path, labels: Labels) -> None:
    """Replace the labels of a run directory; the file is removed if all of them are empty.

    Raises:
        UserError: If the file cannot be written.
    """
    path = labels_path(directory)
    fields = {name: value for name, value in vars(labels).items() if value is not None}
    try:
        if labels == NO_LABELS:
            with suppress(FileNotFoundError):
                path.unlink()
        else:
            write_atomic(path, json.dumps({"version": LABELS_VERSION, **fields}, ensure_ascii=False, indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{one_line(str(path), 200)} cannot be written: {error.strerror}.", "Make room or fix its permissions."
        ) from error


def clean_text(text: str, limit: int, what: str) -> str:
    """A display name or a note as a user typed it, on one line without blanks around it.

    Raises:
        UserError: If it is longer than ``limit`` characters, or is not text.
    """
    clean = one_line(text.strip(), len(text) + 1)
    if len(clean) > limit:
        raise UserError(f"The {what} has {len(clean)} characters.", f"{limit} are the most.")
    return clean


def clean_tags(texts: Iterable[str]) -> tuple[str, ...]:
    """Tags as a user typed them, separated by blanks or commas, with or without ``#``; each once.

    Raises:
        UserError: If one is too long, or there are too many.
    """
    words = [word.lstrip("#") for text in texts for word in re.split(r"[\s,]+", one_line(text, 4000))]
    found = tuple(dict.fromkeys(word for word in words if word))
    if wrong := next((word for word in found if not _TAG.fullmatch(word)), None):
        raise UserError(f"{one_line(wrong, 60)} is no tag.", f"A tag is one word of at most {TAG_LIMIT} characters.")
    if len(found) > MOST_TAGS:
        raise UserError(f"These are {len(found)} tags.", f"A run has {MOST_TAGS} at most.")
    return found


def _label_text(value: object, limit: int) -> str:
    return one_line(value.strip(), limit) if isinstance(value, str) else ""


#: Names of the configuration and of the event record in a run directory.
CONFIG_NAME, EVENTS_NAME = "run.toml", "events.jsonl"
#: Directory of the facts about its rows in a run's directory: losses, reviews, indexes, proofs.
TRACE = "trace"
_OWN_NAME = "own.toml"
#: Time format of the beginning of a run id.
_STAMP = "%Y%m%d-%H%M%S"
_STAMPED = re.compile(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)(\d\d)", re.ASCII)
#: Seconds by which the last heartbeat may be later than the recorded end.
_END_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """A run directory; the files in it are named by the design's contract."""

    path: Path

    @property
    def id(self) -> str:
        """Id of the run, ``YYYYMMDD-HHMMSS-slug``."""
        return self.path.name

    @property
    def created(self) -> datetime | None:
        """Local time that its id begins with; None for a directory that was renamed."""
        try:
            found = _STAMPED.match(self.id)
            if found is None:
                return None
            year, month, day, hour, minute, second = map(int, found.groups())
            moment = datetime(year, month, day, hour, minute, second)
            moment.timestamp()  # fails for the first and last days of the calendar
        except (ValueError, OverflowError, OSError):
            return None
        return moment

    @property
    def config_path(self) -> Path:
        """Configuration of the run, every value resolved."""
        return self.path / CONFIG_NAME

    @property
    def own_config_path(self) -> Path:
        """Configuration of the run without the limits of a night, to begin another from."""
        own = self.path / _OWN_NAME
        return own if own.is_file() else self.config_path

    @property
    def template_path(self) -> Path:
        """The chat template of the training, with the values of ``template.variables`` if there are any."""
        return self.path / "chat_template.jinja"

    @property
    def state_path(self) -> Path:
        """File of the state and the heartbeat."""
        return self.path / "state.json"

    @property
    def events_path(self) -> Path:
        """Append-only event record."""
        return self.path / EVENTS_NAME

    @property
    def log_path(self) -> Path:
        """Output of the worker and its libraries."""
        return self.path / "worker.log"

    @property
    def checkpoints_path(self) -> Path:
        """Parent of the checkpoint directories."""
        return self.path / "checkpoints"

    @property
    def adapter_path(self) -> Path:
        """Final adapter, in PEFT's format."""
        return self.path / "adapter"

    @property
    def model_path(self) -> Path:
        """Final model, of a run that trained the model's own weights."""
        return self.path / "model"

    @property
    def socket_path(self) -> Path:
        """Control socket of the worker: in the run directory, or in the runtime directory if that path is too long."""
        inside = self.path / "control.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_LIMIT:
            return inside
        return runtime_dir() / socket_name(self.path)

    def state(self) -> RunState:
        """Present state, with ``lost`` and ``stalled`` inferred; also ``lost`` if nothing can be read.

        A worker may end without being able to update ``state.json``; then the end in its event record counts.
        """
        recorded = RunState.read(self.state_path)
        if recorded is None:
            return RunState(state="lost", reason="state.json is missing or unreadable")
        state = infer_state(recorded)
        if state.state != "lost" or recorded.pid is None:
            return state
        if (end := _told_end(recorded, self.events_path)) is not None:
            reason = one_line(end.reason)
            refused = one_line(end.refused or "")
            return dataclasses.replace(
                recorded, state=end.type, reason=reason, refused=refused, socket=None, step_started=None
            )
        cause = memory_death(recorded, self.events_path)
        return state if cause is None else dataclasses.replace(state, reason=cause)

    @property
    def trains_adapter(self) -> bool:
        """True if the run trains an adapter, so that the base can be chatted with too; cached, as a run's configuration
        does not change.
        """
        return _trains_adapter(self.config_path)

    def config(self) -> Config:
        """Configuration that the run was started with.

        Raises:
            UserError: If ``run.toml`` is missing or invalid.
        """
        return ConfigDocument.load(self.config_path).validate()

    def values(self) -> dict[str, Any]:
        """Values in ``run.toml``, ``section.key`` to value, unchecked; empty if it cannot be read."""
        try:
            data = tomli.loads(FileText.read(self.config_path).text)
        except (OSError, ValueError, RecursionError):
            return {}
        return {
            f"{section}.{key}": value
            for section, table in data.items()
            if isinstance(table, dict)
            for key, value in table.items()
        }


def _told_end(recorded: RunState, events: Path) -> FinishedEvent | None:
    """The end event at the end of a record; None if the worker went on, or a later worker has started."""
    try:
        status = os.stat(events)
    except OSError:
        return None
    return _read_end(recorded, events, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _read_end(recorded: RunState, events: Path, _stamp: tuple[int, int]) -> FinishedEvent | None:
    last = next((event for event in last_events(events, Event) if not isinstance(event, HardwareEvent)), None)
    return last if isinstance(last, FinishedEvent) and last.t >= recorded.updated - _END_SECONDS else None


@functools.lru_cache(maxsize=64)
def _trains_adapter(config_path: Path) -> bool:
    try:
        return ConfigDocument.load(config_path).validate().method.name not in WEIGHT_METHODS
    except UserError:
        return True


def make_slug(name: str) -> str:
    """Slug for a run id: a short lower-case name of letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-") or "run"


def create_run(config: Config, name: str) -> Run:
    """Create a run directory with ``run.toml`` and a queued ``state.json``; nothing remains on failure.

    Args:
        config: The checked configuration, paths absolute.
        name: Subject of the run; its slug ends the run id.

    Raises:
        UserError: If the home cannot be written or is full.
    """
    directory = paths.make_private_dir(paths.runs_dir())
    for run_id in numbered(_new_id(name)):
        run = Run(directory / run_id)
        try:
            run.path.mkdir(mode=paths.DIRECTORY_MODE)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise _unwritable(run, "created", error) from error
    try:
        _write_queued(run, dump_config(config))
    except OSError as error:
        shutil.rmtree(run.path, ignore_errors=True)
        raise _unwritable(run, "written", error) from error
    return run


def numbered(name: str) -> Iterator[str]:
    """``name``, ``name-2``, ``name-3`` and so on."""
    yield name
    yield from (f"{name}-{number}" for number in itertools.count(2))


def _new_id(name: str) -> str:
    # A name may come from a file name, which may contain a secret; the id is shown everywhere.
    return f"{datetime.now().strftime(_STAMP)}-{make_slug(redact(name))}"


def _write_queued(run: Run, configuration: str) -> None:
    write_atomic(run.config_path, configuration)
    RunState(state="queued", host=hostname(), updated=time.time()).write(run.state_path)


def _unwritable(run: Run, verb: str, error: OSError) -> UserError:
    return UserError(f"{run.path} cannot be {verb}: {error.strerror}.", "Make room or set LOCALTUNE_HOME.")


def free_run_id(name: str, taken: Collection[str] = ()) -> str:
    """A run id that no run has, for a run whose directory is made later by :func:`make_run`.

    Args:
        name: Subject of the run; its slug ends the id.
        taken: Ids that are reserved already.
    """
    ids = numbered(_new_id(name))
    return next(one for one in ids if one not in taken and not os.path.lexists(paths.runs_dir() / one))


def make_run(run_id: str, configuration: str, own: str) -> Run:
    """Make the directory of a queued run atomically, so that it can be repeated after a kill.

    Args:
        run_id: The id, from :func:`free_run_id`.
        configuration: The text of its ``run.toml``, every value resolved.
        own: The same without the limits of a night.

    Returns:
        The run; unchanged if its directory exists.

    Raises:
        UserError: If the home cannot be written or is full.
    """
    run = Run(paths.make_private_dir(paths.runs_dir()) / run_id)
    if run.config_path.is_file():
        return run
    try:
        with new_directory(run.path) as directory:
            _write_queued(Run(directory), configuration)
            if own != configuration:
                write_atomic(directory / _OWN_NAME, own)
    except OSError as error:
        raise _unwritable(run, "written", error) from error
    return run


def list_runs() -> list[Run]:
    """All runs, newest first."""
    try:
        with os.scandir(paths.runs_dir()) as entries:
            # A hidden directory is still being made.
            names = [entry.path for entry in entries if not entry.name.startswith(".")]
            found = [Run(Path(name)) for name in names if os.path.isfile(f"{name}/{CONFIG_NAME}")]
    except OSError:
        return []
    return sorted(found, key=lambda run: run.id, reverse=True)


def _is_run(path: Path) -> bool:
    try:
        return (path / "run.toml").is_file()
    except OSError:  # not accessible, or longer than a path can be
        return False


def find_run(name: str) -> Run:
    """Find the run that a user names by its id or a part of it, a display name, a path, or ``latest``.

    Raises:
        UserError: If there is no such run, more than one, or the name is empty.
    """
    if os.sep in name and _is_run(Path(name)):
        return Run(Path(name).absolute())
    if not any(map(str.isalnum, name)):
        # An empty text, as from an unset variable, or a dash would match every id.
        raise UserError("No run is named.", "Name one, or take 'latest' for the newest.")
    runs = list_runs()
    if not runs:
        raise UserError(
            "There are no runs yet.", "Start one with 'localtune-tui demo' or 'localtune-tui train CONFIG'."
        )
    if name == "latest":
        return runs[0]
    matches = [run for run in runs if run.id == name] or [run for run in runs if name in run.id]
    # Display names count only if no id matches.
    matches = matches or [run for run in runs if read_labels(run.path).name.lower() == name.lower()]
    if not matches:
        raise UserError(f"There is no run called {one_line(name, 200)}.", _guess(name, runs))
    if len(matches) > 1:
        raise UserError(
            f"{one_line(name, 200)} could mean {len(matches)} runs: {', '.join(run.id for run in matches[:4])}.",
            "Give more of the id.",
        )
    return matches[0]


def _guess(name: str, runs: Sequence[Run]) -> str:
    """The run that a mistyped name most likely means, as a hint: by its whole id, or by its slug."""
    found = nearest(name, [run.id for run in runs])
    if found is None:
        by_slug = {slug_of(run.id): run.id for run in reversed(runs)}
        found = by_slug.get(nearest(name, by_slug) or "")
    return f"Did you mean {found}?" if found is not None else "'localtune-tui runs' lists them."


def has_weights(run: Run) -> bool:
    """True if a run has saved a model to chat with: a final adapter or model, or a checkpoint."""
    return run.adapter_path.is_dir() or run.model_path.is_dir() or bool(complete_checkpoints(run))


def complete_checkpoints(run: Run) -> list[Path]:
    """Checkpoint directories with a manifest, oldest first; the worker verifies its hashes."""
    try:
        found = [
            (int(match[1]), path)
            for path in (run.checkpoints_path.iterdir() if run.checkpoints_path.is_dir() else ())
            if (match := re.fullmatch(r"step-(\d{1,18})", path.name)) and (path / "manifest.json").is_file()
        ]
    except OSError:  # an inaccessible directory has no usable checkpoints
        return []
    return [path for _, path in sorted(found)]


def way_on(run: Run) -> str:
    """The command that continues an ended run, as a sentence: ``continue`` if there is a checkpoint."""
    if complete_checkpoints(run):
        return f"'localtune-tui continue {run.id}' goes on from its last checkpoint."
    return f"It saved no checkpoint; {start_again(run)}."


def after_refusal(run: Run) -> str:
    """Hint for a run whose result is refused."""
    if not complete_checkpoints(run):
        return "Train differently, or change eval.gate."
    return f"Look at what was refused: localtune-tui chat {run.id}. Train differently, or change eval.gate."


def refuse_live(run: Run, refused: str) -> None:
    """Refuse a run that is not over.

    Args:
        run: The run.
        refused: The end of the sentence: ``only a run that is over can be verified``.

    Raises:
        UserError: If it is live.
    """
    state = run.state()
    if not state.is_over:
        raise UserError(
            f"Run {run.id} {in_words(state.state)}; {refused}.",
            f"Wait for its end, or stop it: localtune-tui stop {run.id}",
        )


def start_again(run: Run) -> str:
    """The command that starts a run again, as the end of a sentence."""
    return f"start it again with 'localtune-tui train {shlex.quote(str(run.config_path))}'"


# Writing.

_RECORD_LIMIT = 64 << 10
#: The directory of the trackers, whose libraries make links between their own files.
_TRACKERS = "tracking"


def refuse_unsafe_files(run: Run, below: str = "") -> None:
    """Refuse a run with unsafe files, before it is written to.

    Args:
        run: The run.
        below: Check only this directory of it.

    Raises:
        UserError: If a file is a link, a pipe, a device or has a second name, or a directory cannot be read.
    """
    try:
        for path in _files_of(run, run.path / below):
            # Other processes of the run may remove files meanwhile.
            with suppress(FileNotFoundError):
                _refuse_unsafe(run, path, os.stat(path, follow_symlinks=False))
    except OSError as error:
        where = one_line(str(error.filename or run.path), 300)
        raise UserError(f"{where} cannot be read: {error.strerror}.", "Fix its permissions.") from error


def _files_of(run: Run, directory: Path) -> Iterator[Path]:
    """All entries in a directory of a run, at any depth, except directories; the path itself if it is a link."""
    if directory == run.checkpoints_path and directory.is_symlink():
        refuse_moved_checkpoints(run)
    elif directory.is_symlink() and directory != run.path:
        yield directory
        return
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False) or (path == run.checkpoints_path and entry.is_symlink()):
            yield from _files_of(run, path)
        else:
            yield path


def _refuse_unsafe(run: Run, path: Path, status: os.stat_result) -> None:
    reason = unsafe_kind(status)
    # Workers listen on a socket; writing to its path is impossible.
    if reason is None or stat.S_ISSOCK(status.st_mode) or _is_of_tracker(run, path, status):
        return
    hint = "Remove it if you did not put it there."
    if stat.S_ISREG(status.st_mode):
        hint = "Copy the run ('cp -r --no-preserve=links'), and go on with the copy."
    raise UserError(f"{one_line(str(path), 300)} is not written to: {reason}.", hint)


def _is_of_tracker(run: Run, path: Path, status: os.stat_result) -> bool:
    """True for a link that a tracker's library has made to a file of its own."""
    parts = path.relative_to(run.path).parts
    if not stat.S_ISLNK(status.st_mode) or parts[0] != _TRACKERS or len(parts) < 3:
        return False
    own = os.path.realpath(run.path / _TRACKERS / parts[1])
    return os.path.realpath(path).startswith(f"{own}{os.sep}")


# Checkpoints on another disk.


def refuse_moved_checkpoints(run: Run) -> None:
    """Refuse a link ``checkpoints``, unless the user has confirmed its target.

    Raises:
        UserError: If the target is not confirmed.
    """
    path = run.checkpoints_path
    if not path.is_symlink():
        return
    target = os.path.realpath(path)
    if _confirmed_directory(run) != target:
        words = one_line(shlex.join(["localtune-tui", "continue", run.id, "--checkpoints", target]), 600)
        raise UserError(
            f"{one_line(str(path), 300)} is a link to {one_line(target, 300)}, and old checkpoints are deleted there.",
            f"If you have moved them there: {words}",
        )


def confirm_checkpoints(run: Run, directory: Path) -> None:
    """Remember that ``checkpoints`` of a run is a link to a directory elsewhere.

    Args:
        run: The run.
        directory: The target that the user confirms.

    Raises:
        UserError: If ``checkpoints`` is not a link or has another target, or the record cannot be written.
    """
    path = run.checkpoints_path
    if not path.is_symlink():
        raise UserError(
            f"{one_line(str(path), 300)} is not a link: the checkpoints are in the run's own directory.",
            "To have them on another disk, move the directory there and link to it, then do it again.",
        )
    target, named = os.path.realpath(path), os.path.realpath(directory)
    if target != named:
        raise UserError(
            f"{one_line(str(path), 300)} is a link to {one_line(target, 300)}, not to {one_line(named, 300)}.",
            "Name the directory that it leads to, or change the link.",
        )
    if not os.path.isdir(target):
        raise UserError(f"There is no directory {one_line(target, 300)}.", "Mount its disk, then do it again.")
    record = _record_path(run)
    data = {"version": 1, "run": os.path.realpath(run.path), "checkpoints": target}
    try:
        paths.make_private_dir(record.parent)
        write_atomic(record, json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise disk_error(record.parent, error) from error


def _confirmed_directory(run: Run) -> str | None:
    """Directory that the user has confirmed for the checkpoints of a run; None without one."""
    try:
        data = read_json(_record_path(run), _RECORD_LIMIT)
        is_of_run = data["run"] == os.path.realpath(run.path)
        return str(data["checkpoints"]) if is_of_run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _record_path(run: Run) -> Path:
    return paths.moved_dir() / f"{run.id}.json"


def append_events(run: Run, *events: Event) -> None:
    """Append events to ``events.jsonl``.

    Args:
        run: The run; its worker may be alive.
        *events: The events.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened_record(run) as file:
        _write_events(file, events)


def append_while_open(run: Run, *events: Event) -> bool:
    """Append events, unless the end of the run is recorded or being recorded (:func:`closing_record`), after which
    nothing may follow.

    Args:
        run: The run; its worker may be alive.
        *events: The events.

    Returns:
        True if they were added.

    Raises:
        UserError: If they cannot be written.
    """
    with _opened_record(run) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
        state = RunState.read(run.state_path)
        if state is not None and state.state in END_STATES:
            return False
        _write_events(file, events)
        return True


@contextlib.contextmanager
def closing_record(descriptor: int) -> Iterator[None]:
    """Inside, a worker records the end of its run, and :func:`append_while_open` adds nothing.

    Args:
        descriptor: Of ``events.jsonl``.
    """
    # Without locks the end is recorded as well.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # A forked process with the same descriptor would keep the lock.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def _opened_record(run: Run) -> Iterator[IO[bytes]]:
    try:
        with os.fdopen(open_beneath(run.path, EVENTS_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT), "ab+") as file:
            yield file
    except OSError as error:
        raise UserError(f"{run.events_path} cannot be written: {error.strerror}.", "Fix its permissions.") from error


def _write_events(file: IO[bytes], events: tuple[Event, ...]) -> None:
    lines = "".join(map(encode_event, events))
    if file.tell():
        file.seek(-1, os.SEEK_END)
        # A line that a kill cut short is terminated first.
        lines = lines if file.read(1) == b"\n" else "\n" + lines
    file.write(lines.encode("utf-8", errors="replace"))


#: Environment variable with the inherited descriptor.
LOCK_VARIABLE = "LOCALTUNE_WORKER_LOCK"


def try_lock(run: Run) -> int | None:
    """Try to take the run's lock.

    Returns:
        The descriptor that holds it (close it to release), or None if another process has it. On a file system without
        locks, always a descriptor.

    Raises:
        UserError: If the lock file cannot be made or locked.
    """
    return try_lock_file(run.path / "worker.lock", needs_locks=False)


def hold_worker_lock(run: Run) -> int:
    """Adopt the inherited lock, or take it if started by hand; called by the worker before anything else.

    Returns:
        The descriptor, to keep open for the life of the process; the worker's own children do not inherit it.

    Raises:
        UserError: If another worker has the lock.
    """
    inherited = os.environ.pop(LOCK_VARIABLE, "")
    if inherited.isascii() and inherited.isdigit() and _is_lock_of(run, int(inherited)):
        os.set_inheritable(int(inherited), False)
        return int(inherited)
    descriptor = try_lock(run)
    if descriptor is None:
        raise UserError(f"Run {run.id} already has a worker.", f"Watch it with 'localtune-tui watch {run.id}'.")
    return descriptor


def _is_lock_of(run: Run, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(run.path / "worker.lock"))
    except (OSError, OverflowError):
        return False
