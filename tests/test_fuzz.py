"""Mutations of external files, a few of each kind: read, or refused in a sentence, within limits of time and memory.

``python bench/fuzz.py`` does the same for minutes.
"""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest

from tests.core.worker.model.gguf_files import write_gguf
from tests.fuzzing import Reader, mutate, outcome, readers

#: Mutations of each kind, divided by the cost of one, and of the long test.
FEW, MANY = 12, 100
#: Limit of this process's memory growth by all of them, in bytes.
MOST_GROWTH = 256 << 20


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    return write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_whatever_is_in_a_file_it_is_read_or_refused(
    count: int, tmp_path: Path, tiny_model_dir: Path, gguf: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for reader in readers(tmp_path, tiny_model_dir, gguf):
        rng = random.Random(reader.name)
        path = tmp_path / f"fuzzed{reader.suffix}"
        for seed in reader.seeds:
            assert outcome(reader, seed, path) == "read", reader.name
        for _ in range(max(count // reader.cost, 2)):
            check(reader, mutate(rng.choice(reader.seeds), rng), path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_GROWTH


def check(reader: Reader, data: bytes, path: Path) -> None:
    try:
        outcome(reader, data, path)
    except BaseException:
        kept = path.with_name(f"failed-{reader.name.replace(' ', '-')}{reader.suffix}")
        kept.write_bytes(data)
        raise
