"""A large dataset of chat messages, the same for the same number of rows: ``python bench/data_rows.py DIRECTORY``.

The words are those of Python's own language reference as often as they stand there, so that tokenizers meet ordinary
English. A row is about a kilobyte: one or two questions of one to three sentences, answers of three to ten.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

#: Sentences from which rows are composed.
SENTENCES = 50_000
#: Rows of a Parquet row group.
GROUP = 10_000

_NAMES = ("Zoë", "José", "Łukasz", "Müller", "Søren", "naïve", "café", "“quoted”", "日本", "Привет")


def sentences(random_: random.Random) -> list[str]:
    """Sentences of six to twenty words; one in twenty has a word beyond ASCII."""
    words = re.findall(r"[A-Za-z]+(?:'[a-z]+)?", " ".join(topics.values()))
    made = []
    for _ in range(SENTENCES):
        chosen = random_.choices(words, k=random_.randint(6, 20))
        if random_.random() < 0.05:
            chosen[random_.randrange(len(chosen))] = random_.choice(_NAMES)
        made.append(" ".join(chosen).capitalize() + random_.choice(("?", ".", ".", ".")))
    return made


def rows(count: int) -> Iterator[dict[str, Any]]:
    """The rows; ``id`` is the number of each."""
    random_ = random.Random(20_240_901)
    pool = sentences(random_)

    def say(least: int, most: int) -> str:
        return " ".join(random_.choices(pool, k=random_.randint(least, most)))

    for number in range(count):
        messages = []
        if random_.random() < 0.2:
            messages.append({"role": "system", "content": say(1, 2)})
        for _ in range(1 if random_.random() < 0.7 else 2):
            messages.append({"role": "user", "content": f"{say(1, 3)} ({random_.randrange(10**6)})"})
            messages.append({"role": "assistant", "content": say(3, 10)})
        yield {"id": number, "messages": messages}


def write(directory: Path, count: int) -> None:
    """Write ``rows.jsonl`` and ``rows.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema([("id", pa.int64()), ("messages", pa.list_(message))])
    group: list[dict[str, Any]] = []
    with (
        (directory / "rows.jsonl").open("w", encoding="utf-8") as lines,
        pq.ParquetWriter(directory / "rows.parquet", schema) as table,
    ):
        for row in rows(count):
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            group.append(row)
            if len(group) == GROUP:
                table.write_table(pa.Table.from_pylist(group, schema))
                group.clear()
        if group:
            table.write_table(pa.Table.from_pylist(group, schema))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.rows)


if __name__ == "__main__":
    main()
