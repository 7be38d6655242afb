"""Rights of the processes that read rows: all that a dataset is made of, and no other file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.analysis.job import analyze
from core.analysis.problems import FileLine
from core.analysis.result import AnalysisRequest
from core.analysis.row_samples import find_row, rights_for, sample_row
from core.sandbox.pool import SandboxPool
from core.template.settings import MaskSettings
from tests.core.data.sample_files import json_lines, pairs, write, write_parquet
from tests.core.sandbox import attempts
from tests.core.sandbox.test_pool import call
from tests.core.sandbox.walls import require_landlock

ROWS = 6


@pytest.fixture
def pool() -> Iterator[SandboxPool]:
    made = SandboxPool()
    yield made
    made.close()


def packed_in_registry(tmp_path: Path) -> str:
    """A compressed Parquet file that an entry of a registry names: it is decompressed whole, by a helper."""
    table = write_parquet(tmp_path / "plain.parquet", pairs(ROWS))
    write(tmp_path / "rows.parquet.gz", gzip.compress(table.read_bytes()))
    columns = {"prompt": "prompt", "response": "completion"}
    entry = {"file_name": "rows.parquet.gz", "columns": columns}
    return f"{write(tmp_path / 'dataset_info.json', json.dumps({'mine': entry}))}#mine"


def directory_of_links(tmp_path: Path) -> str:
    """The split of a directory whose files are elsewhere, as in a hub's cache."""
    blob = write(tmp_path / "blobs" / "a1", json_lines(pairs(ROWS)))
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / "train.jsonl").symlink_to(blob)
    return f"{directory}#train"


@pytest.mark.parametrize("make", [packed_in_registry, directory_of_links])
def test_a_dataset_is_read_with_everything_that_it_is_made_of(
    tmp_path: Path, tiny_model_dir: Path, make: object, pool: SandboxPool
) -> None:
    assert callable(make)
    (tmp_path / "blobs").mkdir()
    request = AnalysisRequest((make(tmp_path),), masks=MaskSettings(str(tiny_model_dir)))
    analysis = analyze(request)
    assert (analysis.rows, analysis.used) == (ROWS, ROWS)
    sample = sample_row(request, analysis, 2)
    assert sample is not None
    assert sample.tokens


def test_other_files_are_not_read(tmp_path: Path, pool: SandboxPool) -> None:
    require_landlock()
    request = AnalysisRequest((str(write(tmp_path / "rows.jsonl", json_lines(pairs(ROWS)))),))
    other = write(tmp_path / "other.jsonl", "{}")
    rights = rights_for(request)
    assert call(pool, attempts.read, tmp_path / "rows.jsonl", rights=rights) == json_lines(pairs(ROWS))
    assert call(pool, attempts.read, other, rights=rights) == "EACCES"


def test_a_row_is_found_by_its_file_and_line(tmp_path: Path) -> None:
    blank = write(tmp_path / "blank.jsonl", "\n" + json_lines(pairs(ROWS)).replace("\n", "\n\n"))
    table = write_parquet(tmp_path / "more.parquet", pairs(ROWS))
    (tmp_path / "blobs").mkdir()
    split = directory_of_links(tmp_path)
    request = AnalysisRequest((str(blank), str(table), split))
    assert find_row(request, FileLine("blank.jsonl", 6)) == (str(blank), 2)
    assert find_row(request, FileLine("more.parquet", ROWS)) == (str(table), ROWS - 1)
    assert find_row(request, FileLine("train.jsonl", 4)) == (split, 3)
    assert find_row(request, FileLine("blank.jsonl", 3)) is None
    assert find_row(request, FileLine("gone.jsonl", 1)) is None
