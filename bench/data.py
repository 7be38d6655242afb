"""Large datasets: first page, any page, index, analysis, memory; ours, `datasets` and polars: ``python bench/data.py``.

A file of chat messages is written to a temporary directory (1,000,000 rows are 1.0 GB; ``--rows`` scales it) and looked
at by each tool in a fresh process, one tool after the other, over several rounds. The table has the medians; the JSON
file in ``bench/results`` has every value. Files are in the page cache, unless ``--cold`` drops them first.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

#: Rows in the analysis.
ANALYZED = 100_000
#: Seconds between two samples of the memory that a probe and its helpers use.
_SAMPLING = 0.2
_COLUMNS = (
    ("first page s", "first_page_s", 3),
    ("index s", "index_s", 2),
    ("page ms", "page_ms", 2),
    ("p95 ms", "page_p95_ms", 2),
    ("peak MB", "peak_mb", 0),
    ("all MB", "all_mb", 0),
    ("disk MB", "disk_mb", 0),
    ("import s", "import_s", 2),
)
_ANALYSIS_COLUMNS = (("seconds", "seconds", 1), ("rows/s", "rows_per_s", 0), ("all MB", "all_mb", 0))


@dataclass
class Case:
    """Measurements of one tool in one case."""

    table: str
    name: str
    probe: str
    arguments: dict[str, Any]
    values: dict[str, list[float]] = field(default_factory=dict)
    unmeasured: str = ""
    """The reason why there are no values."""

    def add(self, values: dict[str, float]) -> None:
        """Add the values of one round."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Any]:
        """The values and their summary for the JSON file."""
        if self.unmeasured:
            return {"not_measured": self.unmeasured}
        return {
            name: {
                "median": round(statistics.median(found), 4),
                "min": round(min(found), 4),
                "values": [round(value, 4) for value in found],
            }
            for name, found in self.values.items()
        }


class Bench:
    """The files, and the probes that read them."""

    def __init__(self, directory: Path, rows: int, model: str | None, cold: bool) -> None:
        self._directory = directory
        self._cold = cold
        self._lines, self._table = str(directory / "rows.jsonl"), str(directory / "rows.parquet")
        self._head, self._analyzed = directory / "head.jsonl", min(rows, ANALYZED)
        self.rows = rows
        self.cases = [*self._file_cases("JSONL", self._lines), *self._file_cases("Parquet", self._table)]
        self.cases += self._analysis_cases(model)
        for case in self.cases:
            if case.probe.startswith("polars") and not _has("polars"):
                case.unmeasured = "polars is not installed (pip install -e '.[bench]')"

    def prepare(self) -> None:
        """Write the files."""
        subprocess.run(
            [sys.executable, str(ROOT / "bench" / "data_rows.py"), str(self._directory), "--rows", str(self.rows)],
            check=True,
        )
        with open(self._lines, "rb") as source, self._head.open("wb") as head:
            for _ in range(self._analyzed):
                head.write(source.readline())

    def bytes(self) -> dict[str, int]:
        """Sizes of the files in bytes."""
        return {"jsonl": os.path.getsize(self._lines), "parquet": os.path.getsize(self._table)}

    def round(self, number: int, chosen: str) -> None:
        """Run all cases once, with nothing kept from the round before."""
        for name in ("home", "cache"):
            shutil.rmtree(self._directory / name, ignore_errors=True)
            (self._directory / name).mkdir()
        for case in self.cases:
            if case.unmeasured or (chosen and chosen not in f"{case.table} {case.name}"):
                continue
            print(f"round {number}: {case.table}, {case.name}", file=sys.stderr, flush=True)
            if self._cold:
                _drop_from_cache((self._lines, self._table, str(self._head)))
            case.add(self._run(case))

    def _run(self, case: Case) -> dict[str, float]:
        environment = {
            **os.environ,
            "LOCALTUNE_HOME": str(self._directory / "home"),
            "HF_HOME": str(self._directory / "cache" / "hub"),
            "HF_HUB_OFFLINE": "1",
            "POLARS_VERBOSE": "0",
        }
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "bench" / "data_probes.py"), case.probe, json.dumps(case.arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        peak = _MemoryOfAll(process.pid)
        output, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{case.table}, {case.name} failed:\n{errors}")
        return {**json.loads(output.splitlines()[-1]), "all_mb": peak.stop()}

    def _file_cases(self, table: str, file: str) -> Iterable[Case]:
        base = {"file": file, "total": self.rows}
        cached = {**base, "cache": str(self._directory / "cache" / table)}
        yield Case(table, "localtune", "ours", base)
        yield Case(table, "datasets", "datasets", cached)
        yield Case(table, "datasets, second time", "datasets", cached)
        yield Case(table, "polars, scan and slice", "polars_scan", base)
        yield Case(table, "polars, read whole", "polars_read", base)

    def _analysis_cases(self, model: str | None) -> Iterable[Case]:
        base = {"file": str(self._head), "total": self._analyzed}
        yield Case("Analysis", "localtune, without tokens", "analysis", {**base, "model": None})
        named = {**base, "model": model}
        cached = {**named, "cache": str(self._directory / "cache" / "map")}
        for case in (
            Case("Analysis", "localtune, with tokens", "analysis", named),
            Case("Analysis", "datasets.map, tokens alone", "datasets_map", cached),
        ):
            if model is None:
                case.unmeasured = "no tokenizer (--model DIRECTORY, or prepare the starter model)"
            yield case


class _MemoryOfAll:
    """The peak memory of a process and its children together, shared pages counted once (PSS); sampled."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._ended = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Stop sampling; returns the peak in megabytes."""
        self._ended.set()
        self._thread.join()
        return self._peak / 1e6

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLING):
            try:
                process = psutil.Process(self._number)
                everyone = [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
            self._peak = max(self._peak, sum(map(_proportional, everyone)))


def _proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _drop_from_cache(paths: Iterable[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _has(package: str) -> bool:
    return bool(_version(package))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def starter_model() -> str | None:
    """The starter model's directory, if it has been prepared."""
    from core import paths

    prepared = paths.models_dir() / "smollm2-135m-instruct"
    return str(prepared) if (prepared / "tokenizer.json").is_file() else None


def machine() -> dict[str, Any]:
    """The machine of the measurement, and its load."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) or None for name in ("datasets", "polars", "pyarrow", "tokenizers")},
    }


def table(
    cases: Sequence[Case], columns: Sequence[tuple[str, str, int]], typical: Callable[[list[float]], float]
) -> list[str]:
    """Aligned lines, one value per round."""
    width = max(len(case.name) for case in cases)
    lines = [f"{cases[0].table:<{width}}" + "".join(f"  {title:>12}" for title, _, _ in columns)]
    for case in cases:
        if not case.values:
            lines.append(f"{case.name:<{width}}  not measured: {case.unmeasured or 'left out by --only'}")
            continue
        cells = [f"{typical(case.values[key]):,.{digits}f}" for _, key, digits in columns]
        lines.append(f"{case.name:<{width}}" + "".join(f"  {cell:>12}" for cell in cells))
    return lines


def report(cases: Sequence[Case], rounds: int) -> list[str]:
    """All tables: the medians, and with several rounds the least disturbed values."""
    lines: list[str] = []
    summaries: list[tuple[str, Callable[[list[float]], float]]] = [("Medians", statistics.median), ("Minima", min)]
    for title, typical in summaries[: 1 if rounds == 1 else 2]:
        lines += [f"{title} of {rounds} rounds" if rounds > 1 else "One round", ""]
        for name in dict.fromkeys(case.table for case in cases):
            columns = _ANALYSIS_COLUMNS if name == "Analysis" else _COLUMNS
            lines += [*table([case for case in cases if case.table == name], columns, typical), ""]
    return lines


def main() -> None:
    """Measure, print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", help="directory of a tokenizer for the analysis (default: the starter model)")
    parser.add_argument("--only", default="", help="only the cases whose name holds this text; no JSON file is written")
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each probe")
    parser.add_argument("--directory", help="where the files are written (default: the directory for temporary files)")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="localtune-bench-", dir=arguments.directory) as directory:
        needed = 6000 * arguments.rows
        if shutil.disk_usage(directory).free < needed:
            raise SystemExit(f"{directory} has less than {needed / 1e9:.1f} GB free; name another with --directory.")
        bench = Bench(Path(directory), arguments.rows, arguments.model or starter_model(), arguments.cold)
        bench.prepare()
        for number in range(1, arguments.rounds + 1):
            bench.round(number, arguments.only)
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "rows": arguments.rows,
            "bytes": bench.bytes(),
            "rounds": arguments.rounds,
            "cold": arguments.cold,
            "machine": {**about, "load_after": round(os.getloadavg()[0], 2)},
            "cases": [{"table": case.table, "name": case.name, **case.summary()} for case in bench.cases],
        }
    print("\n".join(report(bench.cases, arguments.rounds)))
    if arguments.only:
        return
    target = ROOT / "bench" / "results" / f"data-{result['date']}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Every value is in {target.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
