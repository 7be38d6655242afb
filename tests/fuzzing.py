"""Mutated files for every reader of external files, for the tests (seconds) and ``bench/fuzz.py`` (minutes).

Each reader is called as the app and the commands call it, so a hostile file meets the limits that a user has.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.document import ConfigDocument
from core.data.conversation import RowError
from core.data.files.reader import open_rows
from core.data.registries.resolve import resolve_source
from core.data.registries.source import load_registry
from core.errors import LONGEST, UserError
from core.hub.listing import read_listing
from core.importers.convert import import_config
from core.models.sandboxed import check_model_config, check_model_directory, read_model
from core.runs.record.history import read_history
from core.runs.record.state import RunState
from core.runs.record.store import Run
from core.template.preview import SAMPLE
from core.template.sandboxed import RowMasks, preview
from core.template.settings import MaskSettings
from tests.cases import tables
from tests.conftest import CHATML
from tests.core.data.sample_files import json_lines, pairs, write, write_arrow, write_parquet, write_zstd

SEEDS = {
    name: (seed if isinstance(seed, str) else json.dumps(seed)).encode() for name, seed in tables(__file__).items()
}
#: Integers at the overflow limits of file formats.
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**48, 2**63 - 1, 2**64 - 1)
#: Texts with a meaning in one format or another.
_WORDS = (
    *(b"\x00", b"\xff\xfe", b"\xe9", b"\x1b]0;x\x07", b"\xed\xa0\x80", b"\r\n", b"../../x", b"&a [*a, *a]", b"<<: *a"),
    *(b"!!python/object/apply:os.system [x]", b"9" * 5000, b"1e999", b"NaN", b"null", b"[" * 3000, b"{" * 3000),
    *(b"{% for i in range(99999) %}", b"{{ x | safe }}", b'{"a":' * 500, b"\\ud800", b"'" * 50, b"-1", b"true"),
)


@dataclass(frozen=True)
class Reader:
    """A reader of an external file.

    Args:
        name: The kind of file.
        seeds: Valid files.
        read: Reads a file; raises ``UserError`` or ``RowError`` if it refuses it.
        suffix: Suffix of its files.
        cost: Duration of a call, relative to the other readers.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    suffix: str = ""
    cost: int = 1


def mutate(seed: bytes, rng: random.Random) -> bytes:
    """A file with one to four mutations."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_MUTATIONS)(data, rng)
    return bytes(data[: 8 << 20])


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randint(0, len(data))]


def _remove(data: bytearray, rng: random.Random) -> bytearray:
    begin = rng.randint(0, len(data))
    return data[:begin] + data[begin + rng.randint(1, 40) :]


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    begin = rng.randint(0, len(data))
    end = min(begin + rng.randint(1, 60), len(data))
    return data[:end] + data[begin:end] * rng.choice((1, 3, 200)) + data[end:]


def _insert(data: bytearray, rng: random.Random) -> bytearray:
    place = rng.randint(0, len(data))
    return data[:place] + rng.choice(_WORDS) + data[place:]


def _number(data: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice((1, 2, 4, 8))
    if len(data) <= size:
        return data
    place = rng.randrange(len(data) - size)
    edge = rng.choice(_EDGES) % (1 << 8 * size)
    data[place : place + size] = edge.to_bytes(size, rng.choice(("little", "big")))
    return data


def _value(data: bytearray, rng: random.Random) -> bytearray:
    """A JSON document with another value somewhere; other files get flipped bits."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(data, rng)
    places = list(_places(document))
    if not places:
        return data
    inside, key = rng.choice(places)
    inside[key] = rng.choice(
        (None, True, -1, 0, 2**62, 10**400, 1e308, float("nan"), "", "x" * 5000, "../x", "\ud800", [], {}, [[]] * 500)
    )
    return bytearray(json.dumps(document).encode())


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield value, key
            yield from _places(value[key])


_MUTATIONS = (_flip, _cut, _remove, _repeat, _insert, _number, _value)


def readers(directory: Path, model: Path, gguf: Path | None = None) -> list[Reader]:
    """All readers, with seed files.

    Args:
        directory: Where files may be made.
        model: A small model's directory.
        gguf: A complete GGUF file; without one headers of GGUF are left out.
    """
    write(directory / "rows.jsonl", json_lines(pairs(3)))
    found = [*_texts(), *_packed(directory), *_models(directory, model), *_runs(directory)]
    if gguf is not None:
        found.append(Reader("gguf", (gguf.read_bytes(),), read_model, ".gguf"))
    return found


def _texts() -> Iterator[Reader]:
    yield Reader("yaml of other tools", (SEEDS["axolotl"], SEEDS["factory"]), import_config, ".yml")
    yield Reader("yaml registries", (SEEDS["axolotl"],), lambda path: resolve_source(str(path)), ".yml")
    yield Reader("json registries", (SEEDS["registry"],), load_registry, ".json")
    yield Reader("configurations", (SEEDS["toml"],), lambda path: ConfigDocument.load(path).validate(), ".toml")
    yield Reader("answers of a hub", (SEEDS["listing"],), lambda path: read_listing(path.read_bytes(), "h"))
    yield Reader("templates", (CHATML.encode(), SEEDS["template"]), _preview, ".jinja")


def _preview(path: Path) -> object:
    return preview(path.read_bytes().decode("utf-8", "surrogateescape"), SAMPLE, None)


def _rows(path: Path) -> object:
    with open_rows(path) as file:
        return file.rows(0, 20)


def _packed(directory: Path) -> Iterator[Reader]:
    rows = pairs(40)
    lines = json_lines(rows).encode()
    parquet = write_parquet(directory / "seed.parquet", rows).read_bytes()
    arrow = write_arrow(directory / "seed.arrow", rows, stream=False).read_bytes()
    zstd = write_zstd(directory / "seed.zst", lines).read_bytes()
    yield Reader("rows in json lines", (lines,), _rows, ".jsonl")
    yield Reader("rows in json", (json.dumps(rows).encode(),), _rows, ".json")
    yield Reader("rows in csv", (b'prompt,completion\n"a ""b""",c\nd,"e\nf"\n',), _rows, ".csv")
    yield Reader("gzip", (gzip.compress(lines),), _rows, ".jsonl.gz", cost=40)
    yield Reader("zstd", (zstd,), _rows, ".jsonl.zst", cost=40)
    yield Reader("parquet", (parquet,), _rows, ".parquet", cost=60)
    yield Reader("arrow", (arrow,), _rows, ".arrow", cost=60)


def _models(directory: Path, model: Path) -> Iterator[Reader]:
    place = directory / "model"
    shutil.copytree(model, place, dirs_exist_ok=True)

    def changed(name: str, use: Callable[[Path], object]) -> Callable[[Path], object]:
        """Put a file into the model, use the model, and restore the file."""

        def read(path: Path) -> object:
            shutil.copyfile(path, place / name)
            try:
                return use(place)
            finally:
                shutil.copyfile(model / name, place / name)

        return read

    def masked(place: Path) -> object:
        return RowMasks(MaskSettings(str(place))).row(SAMPLE)

    def checked(place: Path) -> object:
        check_model_directory(place)
        return read_model(place)

    weights = next(path.name for path in sorted(model.glob("*.safetensors")))
    uses: tuple[tuple[str, Callable[[Path], object], int], ...] = (
        ("tokenizer.json", masked, 4),
        ("tokenizer_config.json", masked, 4),
        ("config.json", lambda place: (check_model_config(place), read_model(place)), 1),
        (weights, checked, 4),
    )
    for name, use, cost in uses:
        shown = "safetensors" if name == weights else name
        yield Reader(shown, ((model / name).read_bytes(),), changed(name, use), cost=cost)


def _runs(directory: Path) -> Iterator[Reader]:
    run = Run(directory / "20260101-000000-fuzzed")
    run.path.mkdir(exist_ok=True)

    def history(path: Path) -> object:
        shutil.copyfile(path, run.events_path)
        return read_history(run)

    yield Reader("events", (SEEDS["events"],), history, ".jsonl")
    yield Reader("states", (SEEDS["state"],), RunState.read, ".json")


def outcome(reader: Reader, data: bytes, path: Path) -> str:
    """The outcome of reading a file: ``read``, or the class of the error that refuses it; anything else is raised."""
    path.write_bytes(data)
    try:
        reader.read(path)
    except (UserError, RowError) as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        assert len(sentence) <= 2 * LONGEST + 1, sentence
        return type(error).__name__
    return "read"
