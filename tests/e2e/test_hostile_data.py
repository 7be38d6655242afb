"""Hostile files for ``localtune-tui data``: a clear error, or every row accounted for; and bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import shutil
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
    "bytes that are no UTF-8": Case(
        _file("a.jsonl", GOOD.encode() + b'{"prompt": "\xff\xfe", "completion": "a"}\n' + GOOD.encode()),
        used=2,
        dropped={"not_utf8": 1},
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
    "a gzip bomb behind good rows": Case(_file("a.jsonl.gz", lambda: _gzip_bomb(b"\0")), "which no dataset does"),
    "a gzip bomb of long rows": Case(
        _file("a.jsonl.gz", lambda: _gzip_bomb(b'{"prompt": "' + b"x" * 10_000 + b'"}\n')), "which no dataset does"
    ),
    "a zstd bomb": Case(_file("a.jsonl.zst", _zstd_bomb), "which no dataset does"),
    "links that lead round in circles": Case(_looped, used=1, dropped={}),
    "a pipe among the shards": Case(_pipe_as_a_shard, "is a named pipe"),
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
    home = str(tmp_path / "home")
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, sys.executable, "-m", "tui", "data", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "LOCALTUNE_HOME": home, "HOME": home},
    )
    # Some of the files are large.
    shutil.rmtree(tmp_path / "files")
    code, output, errors, peak_mb = json.loads(measured.stdout)
    assert peak_mb < case.peak_mb, "of the largest of its processes"
    assert "Traceback" not in errors
    assert not any(character in output + errors for character in "\x1b\x07\x9b")
    if case.dropped is None:
        assert (code, output) == (1, "")
        assert case.said in errors
        assert len(errors.splitlines()) == 1
        assert len(errors) < 2000
        return
    assert (code, errors) == (0, "")
    told: dict[str, Any] = json.loads(output)
    assert (told["used"], told["dropped"]) == (case.used, case.dropped)
    assert told["rows"] == told["used"] + sum(told["dropped"].values())


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: one process does it all")
def test_a_file_that_changes_while_it_is_looked_at(tmp_path: Path) -> None:
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
        with path.open("a") as file:
            file.write(GOOD)
        output, errors = command.communicate(timeout=120)
    assert command.returncode == 1
    assert output == ""
    assert "has changed" in errors
    assert len(errors.splitlines()) == 1
