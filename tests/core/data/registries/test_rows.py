"""Rows under the dataset lists of other tools: the example that each becomes, or the code of a dropped one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.data.conversation import RowError
from core.data.registries.axolotl import JOINED, PLAIN, REFUSED
from core.data.registries.resolve import single_source
from core.data.registries.source import DataSource
from core.errors import UserError
from tests.cases import cases
from tests.core.data.conversations import viewed
from tests.core.data.registries.test_axolotl import axolotl
from tests.core.data.registries.test_resolve import dataset_list, entry, examples

ROWS: dict[str, list[dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("rows.yaml").read_text(encoding="utf-8")
)
REFUSALS = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))
#: What every entry of the rows says.
NAMED = {
    "dataset_info.json": {"file_name": "rows.jsonl"},
    "LLaMA-Factory v1": {"path": "rows.jsonl", "source": "local"},
}


def in_list(directory: Path, values: Any, row: dict[str, Any]) -> DataSource:
    file = dataset_list(directory, row, mine=values)
    return single_source(f"{file}#mine")


SOURCES: dict[str, Callable[[Path, Any, dict[str, Any]], DataSource]] = {
    "dataset_info.json": entry,
    "LLaMA-Factory v1": in_list,
    "Axolotl": axolotl,
}


@cases(("tool", "case"), [(tool, case) for tool, found in ROWS.items() for case in found])
def test_rows_become_examples(tmp_path: Path, tool: str, case: dict[str, Any]) -> None:
    source = SOURCES[tool](tmp_path, {**NAMED.get(tool, {}), **case["entry"]}, case["row"])
    if "dropped" in case:
        with pytest.raises(RowError) as caught:
            examples(source)
        assert caught.value.code == case["dropped"]
    else:
        (example,) = examples(source)
        assert viewed(example, case["want"]) == case["want"]


@cases(("tool", "values", "part", "hint"), [(tool, *case) for tool in SOURCES for case in REFUSALS[tool]])
def test_entries_that_are_refused(tmp_path: Path, tool: str, values: Any, part: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        SOURCES[tool](tmp_path, values, {})
    assert part in caught.value.message
    assert tool != "LLaMA-Factory v1" or "v1.yaml#mine" in caught.value.message
    assert caught.value.hint
    assert hint in caught.value.hint


def test_every_type_of_axolotl_has_been_tried() -> None:
    kinds = {case["entry"]["type"] for case in ROWS["Axolotl"] if isinstance(case["entry"]["type"], str)}
    tried = {kind.partition(":")[0].removesuffix(".load") for kind in kinds}
    others = {"completion", "pretrain", "input_output", "metharme", "chat_template"}
    assert tried - others == {*PLAIN, *JOINED, "pygmalion", "llama2_chat"}
    assert not tried & set(REFUSED) - {"chat_template"}
