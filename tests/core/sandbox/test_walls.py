"""Walls around readers: hostile code in a reader reaches nothing, and the reader still has everything it needs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.commands.checks.security import check_walls, walls_finding
from core.sandbox import seccomp
from core.sandbox.limits import VARIABLE, WITHOUT, Walls, walls
from core.sandbox.pool import SandboxPool
from core.sandbox.rights import NO_RIGHTS, Rights, program_files, reading, with_targets
from tests.cases import cases
from tests.core.sandbox import attempts, readers
from tests.core.sandbox.test_pool import call
from tests.core.sandbox.walls import landlock_version, require_filter, require_landlock

#: Refuses Landlock as an old kernel does, and further filters as a container does, then confines itself.
REFUSED = """
import ctypes, os, struct
from core.sandbox.limits import confine, walls
landlock, seccomp = 444, {"x86_64": 317, "aarch64": 277}[os.uname().machine]
old, refused = (6, 0, 0, 0x50000 | 38), (6, 0, 0, 0x50000 | 1)
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, landlock), old, (0x15, 0, 1, seccomp), refused]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in [*lines, (6, 0, 0, 0x7FFF0000)]))
libc = ctypes.CDLL(None)
assert libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
assert libc.prctl(22, ctypes.c_ulong(2), struct.pack("@HP", len(lines) + 1, ctypes.addressof(code))) == 0
confine(256 << 20)
print(walls())
try: bytearray(300 << 20)
except MemoryError: print("limited")
"""


@pytest.fixture(scope="module")
def pool() -> Iterator[SandboxPool]:
    made = SandboxPool()
    yield made
    made.close()


def test_a_reader_that_is_taken_over_reaches_nothing_and_still_answers(pool: SandboxPool, tmp_path: Path) -> None:
    require_landlock()
    require_filter()
    named, other, written = tmp_path / "named", tmp_path / "secret" / "other", tmp_path / "written"
    other.parent.mkdir()
    named.write_text("named")
    other.write_text("other")
    mode = other.stat().st_mode
    rights = reading(named)
    before = call(pool, readers.process, rights=rights)
    found = call(pool, attempts.try_all, named, other, written, os.getpid(), rights=rights)
    assert isinstance(found, dict)
    assert {name: error for name, error in found.items() if error not in ("EACCES", "EPERM", "EXDEV")} == {}
    assert call(pool, attempts.read, named, rights=rights) == "named"
    assert call(pool, readers.process, rights=rights) == before
    assert (other.read_text(), other.stat().st_mode, named.read_text()) == ("other", mode, "named")
    assert not written.exists()


def test_a_reader_sends_no_signals_to_others(pool: SandboxPool) -> None:
    if landlock_version() < 6:
        pytest.skip("signals are limited since version 6 of Landlock")
    assert call(pool, attempts.signal_asker, os.getpid()) == "EPERM"


def test_what_libraries_do_late_works(pool: SandboxPool) -> None:
    assert call(pool, attempts.late_needs) == []


def test_each_call_has_its_own_files_and_none_of_the_one_before(pool: SandboxPool, tmp_path: Path) -> None:
    require_landlock()
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("2")
    for keep in ("", "kept"):
        for own, other in ((first, second), (second, first)):
            assert call(pool, attempts.read, own, rights=reading(own), keep=keep) == own.read_text()
            assert call(pool, attempts.read, other, keep=keep) == "EACCES"


def test_a_file_that_takes_the_place_of_another_is_read(
    pool: SandboxPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "path", tmp_path / "newer"
    path.write_text("old")
    assert call(pool, attempts.read, path, rights=reading(path)) == "old"
    newer.write_text("new")
    newer.rename(path)
    monkeypatch.chdir(tmp_path)  # a relative path is that of the caller
    assert call(pool, attempts.read, Path("path"), rights=reading("path")) == "new"


def test_links_of_a_named_directory_are_followed_to_files(pool: SandboxPool, tmp_path: Path) -> None:
    blobs, snapshot, private = tmp_path / "blobs", tmp_path / "model" / "snapshot", tmp_path / "private"
    for directory in (blobs, snapshot, private):
        directory.mkdir(parents=True)
    (blobs / "a1").write_text("weights")
    (blobs / "b2").write_text("others")
    (snapshot / "model.safetensors").symlink_to("../../blobs/a1")
    (private / "key").write_text("key")
    (snapshot / "directory").symlink_to(private)
    rights = reading(tmp_path / "model")
    assert call(pool, attempts.read, snapshot / "model.safetensors", rights=rights) == "weights"
    if landlock_version():
        assert call(pool, attempts.read, blobs / "b2", rights=rights) == "EACCES"
        assert call(pool, attempts.read, snapshot / "directory" / "key", rights=rights) == "EACCES"
    # The link leads elsewhere by the next call.
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blobs / "b2")
    assert call(pool, attempts.read, snapshot / "model.safetensors", rights=rights) == "others"


def test_links_are_looked_for_in_a_bounded_part_of_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "target").touch()
    (tmp_path / "deep" / "er" / "link").symlink_to(tmp_path / "target")
    many = tmp_path / "many"
    many.mkdir()
    assert list(with_targets([str(tmp_path)])) == [str(tmp_path), str(tmp_path / "target")]
    for number in range(20):
        (many / str(number)).mkdir()
        (many / str(number) / "link").symlink_to(tmp_path / "target")
    monkeypatch.setattr("core.sandbox.rights._MOST_ENTRIES", 25)
    assert list(with_targets([str(many)])).count(str(tmp_path / "target")) == 5
    assert list(with_targets([str(many), str(tmp_path)])).count(str(tmp_path / "target")) <= 5
    assert list(with_targets([str(tmp_path / "no\0file")])) == [str(tmp_path / "no\0file")]


def test_packages_that_are_links_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "cache" / "archive" / "h4sh" / "pydantic" / "__init__.py"
    linked = tmp_path / "site-packages" / "pydantic" / "__init__.py"
    for file in (real, linked):
        file.parent.mkdir(parents=True)
    real.touch()
    linked.symlink_to(real)
    spec = importlib.machinery.ModuleSpec("pydantic", None, origin=str(linked))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    # All packages lie there, each in a directory of its own.
    assert str(tmp_path / "cache" / "archive") in program_files.__wrapped__()
    linked.unlink()
    shutil.copy(real, linked)
    assert not [path for path in program_files.__wrapped__() if path.startswith(str(tmp_path))]


def test_a_place_of_modules_that_holds_the_home_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, modules = tmp_path / "home" / "me", tmp_path / "home" / "me" / "modules"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "path", [*sys.path, str(home), str(tmp_path / "home"), str(modules)])
    found = program_files.__wrapped__()
    assert str(modules) in found
    assert not {str(home), str(tmp_path / "home")} & {*found}


def confined(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_process_goes_on_without_walls_that_are_refused() -> None:
    require_filter()
    ended = confined(REFUSED)
    expected = Walls("this kernel does not have it", "a container or another sandbox refuses it")
    assert ended.stdout.splitlines() == [str(expected), "limited"], ended.stderr


def test_walls_can_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    program = "import sys; from core.sandbox.limits import *; confine(); print(walls().files, open(sys.argv[1]).read())"
    ended = confined(program, str(tmp_path / "other"), **{VARIABLE: WITHOUT})
    assert ended.stdout == "switched off by LOCALTUNE_SANDBOX=limits other\n"


def test_doctor_says_which_walls_hold(pool: SandboxPool) -> None:
    found = call(pool, walls)
    assert isinstance(found, Walls)
    finding = check_walls()
    assert finding.status == ("warn" if found.files or found.calls else "ok")
    assert bool(found.files) is not bool(landlock_version())


@cases(
    ("found", "parts"),
    [
        (
            Walls("it is switched off in this kernel", ""),
            ("time, and by seccomp. Not by Landlock: it is switched off", "Linux 5.13"),
        ),
        (Walls("", "no filter for riscv64"), ("and by Landlock. Not by seccomp: no filter for riscv64.", "aarch64")),
        (Walls("x", "y"), ("memory and time. Not by Landlock: x; seccomp: y.", "Linux 5.13")),
        (Walls(f"off by {VARIABLE}", f"off by {VARIABLE}"), ("Not by Landlock", f"Unset {VARIABLE}")),
    ],
)
def test_walls_that_do_not_hold_are_named_with_the_reason(found: Walls, parts: tuple[str, str]) -> None:
    finding = walls_finding(found)
    assert finding.status == "warn"
    assert parts[0] in finding.what
    assert parts[1] in finding.hint


# The filter itself, for both architectures.

ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x50001, 0x50026


def verdict(rights: Rights, column: int, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Result of the filter for a system call, as the kernel computes it."""
    _, own = list(seccomp._ARCHITECTURES.values())[column]
    words = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, own if architecture is None else architecture, 0, *words)
    program, place, word = seccomp._program(rights, column, own), 0, 0
    while True:
        code, if_true, if_false, value = program[place]
        place += 1
        if code == 0x06:
            return value
        if code == 0x20:
            word = struct.unpack_from("=I", data, value)[0]
        elif code == 0x54:
            word &= value
        else:
            holds = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            place += if_true if holds else if_false


@cases("column", [0, 1])
def test_the_filter_of_each_architecture(column: int) -> None:
    numbers = ((59, 221), (41, 198), (91, 52), (257, 56), (56, 220), (435, 435), (53, 199), (302, 261))
    execve, socket, chmod, openat, clone, clone3, pair, limit = (number[column] for number in numbers)
    assert [verdict(NO_RIGHTS, column, number) for number in (execve, socket, chmod)] == [REFUSE] * 3
    assert verdict(NO_RIGHTS, column, openat) == ALLOW
    assert verdict(Rights(starts_helpers=True), column, execve) == ALLOW
    assert verdict(Rights(uses_network=True), column, socket) == ALLOW
    assert verdict(Rights(uses_network=True), column, pair, 1, 2) == ALLOW
    assert verdict(Rights(writes=("/x",)), column, chmod) == ALLOW
    assert verdict(NO_RIGHTS, column, clone3) == ABSENT
    assert verdict(NO_RIGHTS, column, clone, 0x11) == ALLOW
    assert verdict(NO_RIGHTS, column, clone, 0x10000011) == REFUSE
    streams = [verdict(NO_RIGHTS, column, pair, *kind) for kind in ((1, 1), (1, 0o2000001), (1, 2), (2, 1))]
    assert streams == [ALLOW, ALLOW, REFUSE, REFUSE]
    assert [verdict(NO_RIGHTS, column, limit, pid) for pid in (0, 77)] == [ALLOW, REFUSE]
    assert verdict(NO_RIGHTS, column, openat, architecture=0x40000003) == REFUSE, "32 bit"
    assert verdict(NO_RIGHTS, 0, 0x40000000 | 1) == REFUSE, "x32"


@cases(
    ("column", "headers"),
    [
        (0, ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")),
        (1, ("/usr/include/asm-generic/unistd.h",)),
    ],
)
def test_numbers_match_the_kernel(column: int, headers: tuple[str, ...]) -> None:
    header = next((Path(path) for path in headers if os.path.exists(path)), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    known: dict[str, int] = {}
    for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE):
        known.setdefault(name, int(number))
    tables = (seccomp.NETWORK, seccomp.PROGRAMS, seccomp.ATTRIBUTES, seccomp.ALWAYS, seccomp.BY_ARGUMENTS)
    ours = {name: numbers[column] for table in tables for name, numbers in table.items()}
    assert len(ours) > 80
    # The headers may be older than the newest calls, and calls that another architecture has alone are None.
    assert {name: number for name, number in ours.items() if known.get(name, number) != number} == {}
