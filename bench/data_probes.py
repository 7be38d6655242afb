"""The probes of ``bench/data.py``, each in a process of its own: ``python bench/data_probes.py PROBE '{"file": ...}'``.

Prints one JSON object: seconds, and the process's own peak resident memory (VmHWM, mapped files included).
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

#: Rows of a page: the height of a tall terminal.
PAGE = 50
#: Random pages that are timed.
PAGES = 300
#: The same where each is searched from the beginning of the file.
FEW_PAGES = 7

Values = dict[str, Any]
Page = Callable[[int, int], list[Values]]


class Clock:
    """A clock for named intervals, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Any:
        """Add the time inside the context to a name."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def page_times(page: Page, total: int, count: int = PAGES) -> Values:
    """Milliseconds of random pages; each is checked to hold the right rows."""
    random_, times = random.Random(7), []
    for _ in range(count):
        start = random_.randrange(max(total - PAGE, 1))
        begun = time.perf_counter()
        rows = page(start, PAGE)
        times.append(1000 * (time.perf_counter() - begun))
        assert [row["id"] for row in rows] == list(range(start, min(start + PAGE, total)))
        assert isinstance(rows[0]["messages"][0]["content"], str)
    return {"page_ms": statistics.median(times), "page_p95_ms": sorted(times)[int(0.95 * (len(times) - 1))]}


def ours(file: str, total: int) -> Values:
    """Our reader: open, index, read pages."""
    clock = Clock()
    with clock.time("import_s"):
        from core.data.files.reader import open_rows
    with clock.time("first_page_s"):
        opened = open_rows(Path(file))
        first = opened.rows(0, PAGE)
    assert len(first) == PAGE
    with clock.time("index_s"):
        opened.index()
    assert opened.count_known == total
    pages = page_times(lambda start, count: [row.data or {} for row in opened.rows(start, count)], total)
    home = Path(os.environ["LOCALTUNE_HOME"])
    disk = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) + _nameless(str(home))
    opened.close()
    return {**clock.seconds, **pages, "disk_mb": disk / 1e6}


def _nameless(directory: str) -> int:
    """Bytes of the open files in a directory whose names have been removed."""
    size = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(link).startswith(directory):
                size += link.stat().st_size
        except OSError:
            continue
    return size


def hf_datasets(file: str, total: int, cache: str) -> Values:
    """datasets: ``load_dataset`` without streaming, then slices."""
    clock = Clock()
    with clock.time("import_s"):
        import datasets
    datasets.disable_progress_bars()
    kind = "parquet" if file.endswith(".parquet") else "json"
    with clock.time("first_page_s"):
        dataset = datasets.load_dataset(kind, data_files=file, split="train", cache_dir=cache)
        first = dataset[:PAGE]
    assert len(first["id"]) == PAGE
    assert len(dataset) == total

    def page(start: int, count: int) -> list[Values]:
        columns = dataset[start : start + count]
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    pages = page_times(page, total)
    disk = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    # Nothing is left to do once the first page is there.
    return {**clock.seconds, "index_s": 0.0, **pages, "disk_mb": disk / 1e6}


def polars_scan(file: str, total: int) -> Values:
    """polars: a lazy scan, each page a query of its own."""
    clock = Clock()
    with clock.time("import_s"):
        import polars as pl

    def page(start: int, count: int) -> list[Values]:
        scan = pl.scan_parquet if file.endswith(".parquet") else pl.scan_ndjson
        return scan(file).slice(start, count).collect().to_dicts()

    with clock.time("first_page_s"):
        first = page(0, PAGE)
    assert len(first) == PAGE
    few = PAGES // 10 if file.endswith(".parquet") else FEW_PAGES
    return {**clock.seconds, "index_s": 0.0, **page_times(page, total, few), "disk_mb": 0.0}


def polars_read(file: str, total: int) -> Values:
    """polars: the whole file in memory, then slices."""
    clock = Clock()
    with clock.time("import_s"):
        import polars as pl
    with clock.time("first_page_s"):
        frame = (pl.read_parquet if file.endswith(".parquet") else pl.read_ndjson)(file)
        first = frame.slice(0, PAGE).to_dicts()
    assert len(first) == PAGE
    pages = page_times(lambda start, count: frame.slice(start, count).to_dicts(), total)
    return {**clock.seconds, "index_s": 0.0, **pages, "disk_mb": 0.0}


def analysis(file: str, total: int, model: str | None) -> Values:
    """Our analysis of every row, with the tokens of a model or without."""
    from core.analysis.job import analyze
    from core.analysis.result import AnalysisRequest
    from core.template.settings import MaskSettings

    clock = Clock()
    with clock.time("seconds"):
        found = analyze(AnalysisRequest((file,), masks=MaskSettings(model, max_length=2048) if model else None))
    assert found.rows == total == found.used + sum(found.dropped.values())
    tokens = found.lengths.tokens if found.lengths is not None else 0
    return {**clock.seconds, "rows_per_s": total / clock.seconds["seconds"], "tokens": tokens}


def hf_map(file: str, total: int, model: str, cache: str) -> Values:
    """datasets: ``Dataset.map`` with the model's chat template and tokenizer on all cores: tokens, and nothing else."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    dataset = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    clock = Clock()
    with clock.time("seconds"):
        mapped = dataset.map(
            lambda batch: {"ids": tokenizer.apply_chat_template(batch["messages"], return_dict=False)},
            batched=True,
            remove_columns=dataset.column_names,
            num_proc=len(os.sched_getaffinity(0)),
        )
        tokens = sum(len(ids) for ids in mapped["ids"])
    assert len(mapped) == total
    return {**clock.seconds, "rows_per_s": total / clock.seconds["seconds"], "tokens": tokens}


PROBES: dict[str, Callable[..., Values]] = {
    "ours": ours,
    "datasets": hf_datasets,
    "polars_scan": polars_scan,
    "polars_read": polars_read,
    "analysis": analysis,
    "datasets_map": hf_map,
}


def peak_mb() -> float:
    """Peak resident memory of this process; ``ru_maxrss`` may be that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1000


def main(arguments: Sequence[str]) -> None:
    """Run one probe and print its values."""
    values = PROBES[arguments[0]](**json.loads(arguments[1]))
    print(json.dumps({**values, "peak_mb": peak_mb()}))


if __name__ == "__main__":
    main(sys.argv[1:])
