"""Hostile files for ``localtune-tui data``: a clear error, or every row accounted for; and bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.core.data.sample_files import json_lines, pairs, write
from tests.unprivileged import unprivileged
from tests.waiting import wait_for

GOOD = json_lines([{"prompt": "q", "completion": "a"}])
HUGE = 100_000_000
WIDE = 10_000

# A process that is small itself starts the command, so that the peak is not that of the tests.
_MEASURE = """
import json, resource, subprocess, sys
ended = subprocess.run(sys.argv[1:], capture_output=True, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
print(json.dumps([ended.returncode, ended.stdout, ended.stderr, peak]))
"""


@dataclass(frozen=True)
class Ended:
    """How the command ended.

    Args:
        code: Its exit code.
        stdout: Its output.
        stderr: Its errors.
        peak_mb: Largest resident memory of any of its processes.
    """

    code: int
    stdout: str
    stderr: str
    peak_mb: float


def call(path: Path, home: Path) -> Ended:
    """Run the command as a person would."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, sys.executable, "-m", "tui", "data", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "LOCALTUNE_HOME": str(home), "HOME": str(home)},
    )
    return Ended(*json.loads(measured.stdout))


@dataclass(frozen=True)
class Case:
    """A hostile file, and the expected outcome.

    Args:
        make: Writes it into a directory.
        said: Part of the sentence, where it is refused.
        used: Rows used, where it is read.
        dropped: The others.
        peak_mb: The most memory a process may have.
    """

    make: Callable[[Path], Path]
    said: str = ""
    used: int = 0
    dropped: dict[str, int] | None = None
    peak_mb: float = 250


def _file(name: str, content: str | bytes | Callable[[], str | bytes]) -> Callable[[Path], Path]:
    return lambda directory: write(directory / name, content() if callable(content) else content)


def _huge_json_line() -> str:
    return json.dumps({"prompt": "q", "completion": "x" * HUGE}) + "\n"


def _deep(kind: str) -> str:
    opening, closing = ("[", "]") if kind == "array" else ('{"a":', "}")
    return opening * 100_000 + "1" + closing * 100_000


def _huge_parquet(directory: Path) -> Path:
    pq.write_table(pa.table({"prompt": ["q", "q", "q"], "completion": ["a", "x" * HUGE, "b"]}), directory / "a.parquet")
    return directory / "a.parquet"


def _wide_parquet(directory: Path) -> Path:
    columns = {f"c{number}": ["v"] * 20 for number in range(WIDE)}
    pq.write_table(pa.table({**columns, "prompt": ["q"] * 20, "completion": ["a"] * 20}), directory / "a.parquet")
    return directory / "a.parquet"


def _cut_parquet(directory: Path) -> Path:
    path = directory / "a.parquet"
    pq.write_table(pa.table({"prompt": ["q"] * 1000, "completion": ["a"] * 1000}), path)
    return write(path, path.read_bytes()[:-100])


def _gzip_bomb(filler: bytes) -> bytes:
    """Ten gigabytes, packed: many members, one after the other, as ``cat`` makes them."""
    return gzip.compress(GOOD.encode() * 5000) + gzip.compress(filler * ((64 << 20) // len(filler))) * 160


def _zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue().to_pybytes())


def _zstd_bomb() -> bytes:
    return _zstd(GOOD.encode() * 100) + _zstd(b"x" * (64 << 20)) * 160


def _looped(directory: Path) -> Path:
    write(directory / "data" / "a.jsonl", GOOD)
    (directory / "data" / "self").symlink_to(".")
    (directory / "data" / "above").symlink_to("..")
    return directory / "data"


def _loop_as_a_shard(directory: Path) -> Path:
    _looped(directory)
    (directory / "data" / "b.jsonl").symlink_to("b.jsonl")
    return directory / "data"


def _pipe(directory: Path) -> Path:
    os.mkfifo(directory / "a.jsonl")
    return directory / "a.jsonl"


def _pipe_as_a_shard(directory: Path) -> Path:
    write(directory / "data" / "a.jsonl", GOOD)
    os.mkfifo(directory / "data" / "b.jsonl")
    return directory / "data"


CASES = {
    "a row of 100 MB": Case(_file("a.jsonl", lambda: GOOD + _huge_json_line() + GOOD), used=2, dropped={"too_long": 1}),
    "an element of 100 MB": Case(
        _file("a.json", lambda: f"[{GOOD},{_huge_json_line()},{GOOD}]"), used=2, dropped={"too_long": 1}
    ),
    "a cell of 100 MB": Case(
        _file("a.csv", lambda: f'prompt,completion\nq,a\nq,"{"x" * HUGE}"\nq,b\n'), used=2, dropped={"too_long": 1}
    ),
    "a value of 100 MB in Parquet": Case(_huge_parquet, used=2, dropped={"too_long": 1}, peak_mb=1200),
    "a quote that is not closed": Case(
        _file("a.csv", lambda: 'prompt,completion\nq,a\nq,"' + "x\n" * (HUGE // 2)), used=1, dropped={"too_long": 1}
    ),
    "a header of 100 MB": Case(_file("a.csv", lambda: "a" * HUGE), "has a header of more than"),
    "bytes that are no UTF-8": Case(
        _file("a.jsonl", GOOD.encode() + b'{"prompt": "\xff\xfe", "completion": "a"}\n' + GOOD.encode()),
        used=2,
        dropped={"not_utf8": 1},
    ),
    "no UTF-8 at all": Case(_file("a.jsonl", b'{"prompt": "\xff"}\n' * 9), "is not UTF-8 at byte 12"),
    "NULs in some rows": Case(
        _file("a.jsonl", GOOD.encode() * 20 + b'{"prompt": "\0", "completion": "a"}\n\0\n'),
        used=20,
        dropped={"not_json": 2},
    ),
    "NULs as JSON spells them": Case(
        _file("a.jsonl", json_lines([{"prompt": "\0", "completion": "\0a"}])), used=1, dropped={}
    ),
    "nothing but NULs": Case(_file("a.jsonl", bytes(10_000_000)), "is not text"),
    "10,000 columns of CSV": Case(
        _file(
            "a.csv",
            lambda: f"prompt,completion,{','.join(f'c{n}' for n in range(WIDE))}\n" + f"q,a{',v' * WIDE}\n" * 100,
        ),
        used=100,
        dropped={},
    ),
    "10,000 columns, none of them known": Case(
        _file("a.csv", ",".join(f"c{n}" for n in range(WIDE)) + "\n" + "v," * (WIDE - 1) + "v\n"), "of no known format"
    ),
    "10,000 columns of JSON": Case(
        _file(
            "a.jsonl",
            lambda: json_lines([{**{f"c{n}": n for n in range(WIDE)}, "prompt": "q", "completion": "a"}]) * 100,
        ),
        used=100,
        dropped={},
        peak_mb=400,
    ),
    "10,000 columns of Parquet": Case(_wide_parquet, used=20, dropped={}, peak_mb=400),
    "a Parquet file that is cut": Case(_cut_parquet, "cannot be read as Parquet"),
    "a gzip bomb of zeros": Case(_file("a.jsonl.gz", lambda: gzip.compress(bytes(64 << 20)) * 160), "is not text"),
    "a gzip bomb behind good rows": Case(_file("a.jsonl.gz", lambda: _gzip_bomb(b"\0")), "which no dataset does"),
    "a gzip bomb of blank lines": Case(_file("a.jsonl.gz", lambda: _gzip_bomb(b"\n")), "which no dataset does"),
    "a gzip bomb of long rows": Case(
        _file("a.jsonl.gz", lambda: _gzip_bomb(b'{"prompt": "' + b"x" * 10_000 + b'"}\n')), "which no dataset does"
    ),
    "a zstd bomb": Case(_file("a.jsonl.zst", _zstd_bomb), "which no dataset does"),
    "gzip in gzip": Case(_file("a.jsonl.gz", gzip.compress(gzip.compress(GOOD.encode()))), "is not text"),
    "links that lead round in circles": Case(_looped, used=1, dropped={}),
    "a link to itself among the shards": Case(_loop_as_a_shard, "leads back to itself"),
    "a pipe": Case(_pipe, "is a named pipe"),
    "a pipe among the shards": Case(_pipe_as_a_shard, "is a named pipe"),
    "/dev/zero": Case(lambda _: Path("/dev/zero"), "is a device"),
    "an empty file": Case(_file("a.jsonl", b""), "is empty"),
    "only blank lines": Case(_file("a.jsonl", b"\n \n\t\r\n" * 1000), "holds no rows"),
    "only a byte order mark": Case(_file("a.jsonl", b"\xef\xbb\xbf"), "holds no rows"),
    "a byte order mark and CRLF": Case(
        _file("a.csv", b'\xef\xbb\xbfprompt,completion\r\nq,a\r\nq,"b\r\nc"\r\n'), used=2, dropped={}
    ),
    "a ragged CSV": Case(_file("a.csv", "prompt,completion\nq,a\nq\nq,a,b\n,,,\n"), used=1, dropped={"bad_csv": 3}),
    "JSON 100,000 deep": Case(
        _file(
            "a.jsonl",
            lambda: f'{GOOD}{_deep("array")}\n{{"prompt": "q", "completion": {_deep("object")}}}\n{GOOD}',
        ),
        used=2,
        dropped={"not_json": 2},
    ),
    "nothing but brackets": Case(_file("a.json", _deep("array")), "no row that can be read"),
    "a number of a million digits": Case(
        _file("a.jsonl", GOOD + '{"prompt": ' + "9" * 1_000_000 + "}\n"), used=1, dropped={"not_json": 1}
    ),
    "100,000 messages in a row": Case(
        _file(
            "a.jsonl",
            lambda: json_lines(
                [{"messages": [{"role": ("user", "assistant")[n % 2], "content": "x"} for n in range(100_000)]}]
            ),
        ),
        used=0,
        dropped={"too_long": 1},
    ),
    "a column name of megabytes of escapes": Case(
        _file("a.jsonl", json_lines([{"\x1b]52;c;" * 500_000: 1}])), "of no known format"
    ),
    "texts that make patterns search long": Case(
        _file(
            "a.jsonl",
            lambda: json_lines(
                {"prompt": part * (900_000 // len(part)), "completion": "a"}
                for part in ("a@", "a.", "a://a:a", "eyJa.", 'password="', "-----BEGIN A ", "=token:", "\u00c3")
            ),
        ),
        used=8,
        dropped={},
    ),
}


#: Cases of the short test, for each kind of harm.
FEW = [
    "a row of 100 MB",
    "bytes that are no UTF-8",
    "10,000 columns of Parquet",
    "a gzip bomb behind good rows",
    "links that lead round in circles",
    "a pipe among the shards",
    "/dev/zero",
    "a ragged CSV",
    "JSON 100,000 deep",
]


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_a_sentence_or_every_row_accounted_for(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "files").mkdir()
    path = case.make(tmp_path / "files")
    try:
        end = call(path, tmp_path / "home")
    finally:
        if path.is_file() and path.is_relative_to(tmp_path):
            path.unlink()
    assert end.peak_mb < case.peak_mb
    assert "Traceback" not in end.stderr
    assert not any(character in end.stdout + end.stderr for character in "\x1b\x07\x9b")
    if case.dropped is None:
        assert (end.code, end.stdout) == (1, "")
        assert case.said in end.stderr
        assert len(end.stderr.splitlines()) == 1
        assert len(end.stderr) < 2000
        return
    assert (end.code, end.stderr) == (0, "")
    told: dict[str, Any] = json.loads(end.stdout)
    assert (told["used"], told["dropped"]) == (case.used, case.dropped)
    assert told["rows"] == told["used"] + sum(told["dropped"].values())


@pytest.mark.long
def test_a_directory_without_permission(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    write(directory / "a.jsonl", GOOD)
    directory.chmod(0)
    try:
        with unprivileged():
            end = call(directory, tmp_path / "home")
    finally:
        directory.chmod(0o700)
    assert end.code == 1
    assert "may not be read by you" in end.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one process does it all")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda path: os.truncate(path, 1000), "has become shorter", marks=pytest.mark.long),
        (lambda path: path.open("a").write(GOOD), "has changed"),
        pytest.param(
            lambda path: os.replace(write(path.with_name("new.jsonl"), GOOD), path),
            "has been replaced",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_file_that_changes_while_it_is_looked_at(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    path = write(tmp_path / "a.jsonl", json_lines(pairs(100_000)))
    with subprocess.Popen(
        [sys.executable, "-m", "tui", "data", str(path), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        asked = psutil.Process(command.pid)
        # The analysis and its helper processes.
        wait_for(lambda: len(asked.children(recursive=True)) >= 3, 60, "several processes to look at the rows")
        change(path)
        output, errors = command.communicate(timeout=120)
    assert command.returncode == 1
    assert output == ""
    assert said in errors
    assert len(errors.splitlines()) == 1
