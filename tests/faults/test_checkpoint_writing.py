"""A checkpoint that is cut short: killed before each of the calls that write it, and with the power lost there."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.families.forked import call

#: Steps of the existing checkpoints, of the checkpoint that is written, and of the next one.
BEFORE, WRITTEN, NEXT = (10, 20), 30, 40
#: Calls that change a disk, by the names of their audit events.
CALLS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"})


@dataclass(frozen=True)
class Cut:
    """State of the disk after the writing of a checkpoint was cut short before a call."""

    call: str
    killed: bool
    newest: int | None
    damaged: list[str]
    newest_without_power: int | None
    damaged_without_power: list[str]
    newest_without_entries: int | None
    """The same, where the names that were not yet durable are lost as well."""
    left_in_the_end: list[str]
    """Names after the run has gone on and written its next checkpoint."""


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[Cut]:
    """A checkpoint cut short before its first call, its second one, and so on, until it is whole."""
    place = tmp_path_factory.mktemp("cuts")
    return call(cut_everywhere, tiny_model_dir, place, log=place / "log")


def test_a_kill_before_any_call_leaves_the_newest_whole_checkpoint(cuts: list[Cut]) -> None:
    assert [cut.killed for cut in cuts] == [True] * (len(cuts) - 1) + [False]
    assert {"open", "os.mkdir", "os.rename", "os.rmdir", "fsync"} <= {cut.call for cut in cuts}
    assert len(cuts) > 40
    assert all(cut.damaged == [] for cut in cuts), "no half of one ever has the name of a checkpoint"
    newest = [cut.newest for cut in cuts]
    assert newest == sorted(newest, key=lambda step: step or 0)
    assert set(newest) == {BEFORE[-1], WRITTEN}


def test_power_that_is_lost_before_any_call_leaves_a_whole_checkpoint_too(cuts: list[Cut]) -> None:
    assert all(cut.damaged_without_power == [] for cut in cuts)
    assert {cut.newest_without_power for cut in cuts} == {BEFORE[-1], WRITTEN}
    # Earlier checkpoints are deleted only once the name of the new one is durable.
    assert {cut.newest_without_entries for cut in cuts} == {BEFORE[-1], WRITTEN}


def test_a_run_that_goes_on_from_there_leaves_nothing_of_what_was_cut_short(cuts: list[Cut]) -> None:
    assert {tuple(cut.left_in_the_end) for cut in cuts} == {(f"step-{NEXT:08d}",)}


@pytest.mark.long
def test_files_that_are_not_made_durable_would_be_noticed(tmp_path: Path, tiny_model_dir: Path) -> None:
    found: list[Cut] = call(cut_everywhere, tiny_model_dir, tmp_path, 4, False, log=tmp_path / "log")
    assert any(cut.damaged_without_power for cut in found)
    assert all(cut.newest_without_power in (*BEFORE, WRITTEN, None) for cut in found)


# In a process that has the libraries.


def cut_everywhere(model: Path, place: Path, stride: int = 1, durable: bool = True) -> list[Cut]:
    """Cut a checkpoint short before each of its calls.

    Args:
        model: The base model.
        place: A directory.
        stride: Of the calls it is cut short before, from one to the next.
        durable: Whether files are fsynced, as they are.
    """
    from core.worker.checkpoint import checkpoint as checkpoints
    from tests.core.worker.checkpoint.test_checkpoint import Training

    training = Training(model)
    training.step()
    saved = place / "saved"
    for step in BEFORE:
        training.save(saved, step)
    cuts: list[Cut] = []
    for number in itertools.count(1, stride):
        where = Path(shutil.copytree(saved, place / f"cut-{number}"))
        notes = place / f"notes-{number}"
        notes.touch()
        if (child := os.fork()) == 0:
            with cutting(where, notes, number, durable):
                training.save(where, WRITTEN)
                checkpoints.rotate(where, 1, newest=where / f"step-{WRITTEN:08d}")
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        cuts.append(looked_at(where, notes, killed))
        training.save(where, NEXT)
        checkpoints.rotate(where, 1, newest=where / f"step-{NEXT:08d}")
        cuts[-1].left_in_the_end.extend(sorted(os.listdir(where)))
        shutil.rmtree(where)
        if not killed:
            return cuts
    raise AssertionError


@contextmanager
def cutting(where: Path, notes: Path, number: int, durable: bool) -> Iterator[None]:
    """Inside, this process kills itself before a given call that changes the directory.

    The call, and each file and directory that is made durable, go into the notes.
    """
    told = os.open(notes, os.O_WRONLY | os.O_APPEND)
    count, fsync, is_on = 0, os.fsync, True

    def pass_by(name: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            os.write(told, f"call {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def heard(name: str, args: tuple[object, ...]) -> None:
        if is_on and name in CALLS and (name != "open" or str(args[0]).startswith(str(where))):
            pass_by(name)

    def noted(descriptor: int) -> None:
        pass_by("fsync")
        if durable:
            fsync(descriptor)
            facts = os.fstat(descriptor)
            os.write(told, f"durable {facts.st_ino} {facts.st_mtime_ns}\n".encode())

    sys.addaudithook(heard)
    os.fsync = noted  # type: ignore[assignment]
    yield
    is_on = False
    os.write(told, b"call none\n")


def looked_at(where: Path, notes: Path, killed: bool) -> Cut:
    """State for a run that continues, after the kill and after a loss of power at the same moment."""
    from core.worker.checkpoint.checkpoint import newest_valid

    lines = [line.split() for line in notes.read_text().splitlines()]
    durable = {(int(inode), int(moment)) for word, inode, moment in (each for each in lines if len(each) == 3) if word}
    unpowered = Path(shutil.copytree(where, where.with_name(f"{where.name}-unpowered")))
    lose_contents(where, unpowered, durable)
    without_power, damaged_without_power = newest_valid(unpowered)
    # It is fsynced once, after the checkpoint has got its name.
    if where.stat().st_ino not in {inode for inode, _ in durable}:
        lose_written(unpowered)
    without_entries, _ = newest_valid(unpowered)
    shutil.rmtree(unpowered)
    found, damaged = newest_valid(where)
    return Cut(
        call=lines[-1][1] if lines else "",
        killed=killed,
        newest=found.step if found else None,
        damaged=damaged,
        newest_without_power=without_power.step if without_power else None,
        damaged_without_power=damaged_without_power,
        newest_without_entries=without_entries.step if without_entries else None,
        left_in_the_end=[],
    )


def is_durable(path: Path, durable: set[tuple[int, int]]) -> bool:
    """True if a file or directory was fsynced after its last change."""
    facts = path.stat()
    return (facts.st_ino, facts.st_mtime_ns) in durable


def lose_contents(where: Path, unpowered: Path, durable: set[tuple[int, int]]) -> None:
    """Empty every new file and directory that was not fsynced since it was last written; names stay."""
    for path in sorted(where.rglob("*"), reverse=True):
        twin = unpowered / path.relative_to(where)
        if any(part in (f"step-{step:08d}" for step in BEFORE) for part in twin.parts) or not twin.exists():
            continue  # on the disk for long, or lost with its directory
        if is_durable(path, durable):
            continue
        if path.is_dir():
            shutil.rmtree(twin)
            twin.mkdir()
        else:
            os.truncate(twin, 0)


def lose_written(unpowered: Path) -> None:
    """Take back the rename of the checkpoint that was written."""
    written = unpowered / f"step-{WRITTEN:08d}"
    if written.exists():
        written.rename(unpowered / f".{written.name}.1.tmp")
