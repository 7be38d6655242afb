"""Data plans: exactly the options that change the display of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.analysis.result import request_for
from core.config.document import ConfigDocument
from core.config.schema import options
from core.errors import UserError
from core.template.builtin import NAMED_TEMPLATES
from tests.cases import cases
from tests.core.data.sample_files import json_lines, pairs, write, write_parquet
from tui.datasets.plan import Reading, plan_data
from tui.datasets.view import DatasetView
from tui.files import data_paths

COLUMNS = {"user": "frage", "assistant": "antwort"}
#: Every option that changes the display, with another value than its default.
SEEN: dict[str, Any] = {
    "model.base": "another-model",
    "data.train": "other.jsonl",
    "data.eval": "held_out.jsonl",
    "data.format": "text",
    "data.columns": COLUMNS,
    "data.weights": [0.5],
    "data.eval_share": 0.1,
    "data.supervise": "last",
    "data.special_tokens": "keep",
    "data.overlong": "truncate",
    "data.exclude": ["a.jsonl:3"],
    "data.allow": ["stop_untrained"],
    "template.name": "chatml",
    "template.file": "mine.jinja",
    "train.max_length": 99,
    "train.objective": "dpo",
}
#: Other values of the remaining options.
_SAMPLES: dict[str, Any] = {"text": "x", "paths": "x", "integer": 7, "number": 0.25, "boolean": True, "numbers": [0.5]}


def document(directory: Path, **values: Any) -> ConfigDocument:
    made = ConfigDocument("", directory / "mine.toml")
    for name, value in values.items():
        made.set(name.replace("__", "."), value)
    return made


@cases("name", [option.name for option in options()])
def test_what_is_not_seen_does_not_change_the_plan(tmp_path: Path, name: str) -> None:
    option = next(option for option in options() if option.name == name)
    other = next((choice for choice in option.choices if choice != option.default), _SAMPLES.get(option.type, {}))
    before, changed = document(tmp_path, data__train="a.jsonl"), document(tmp_path, data__train="a.jsonl")
    changed.set(name, SEEN.get(name, other))
    assert (plan_data(before) != plan_data(changed)) == (name in SEEN)


def test_files_that_the_configuration_names_are_read_as_it_says(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.jsonl", "{}\n")
    os.symlink(tmp_path / "set", tmp_path / "link")
    plan = plan_data(
        document(tmp_path, data__train=["a.jsonl", "link"], data__eval="b.jsonl", data__format="text")
    ).reading
    named = Reading("text", None)
    for name in ("a.jsonl", "b.jsonl", "set/a.jsonl", "link", "./set/../a.jsonl"):
        assert plan.of(tmp_path / name) == named, name
    for name in ("c.jsonl", "a.jsonl.gz", "settings.jsonl"):
        assert plan.of(tmp_path / name) == Reading(), name
    assert plan.held_out(tmp_path / "a.jsonl") == (str(tmp_path / "b.jsonl"),)
    assert plan.held_out(tmp_path / "b.jsonl") == ()


def test_what_is_held_out_is_known_of_the_only_file_trained_on(tmp_path: Path) -> None:
    sampled = {"data__weights": [0.5], "data__eval_share": 0.1, "train__seed": 3}
    plan = plan_data(document(tmp_path, data__train="a.jsonl", **sampled))
    request = plan.request(tmp_path / "a.jsonl", with_tokens=False)
    assert (request.weights, request.eval_share, request.seed) == ((0.5,), 0.1, 3)
    other = plan.request(tmp_path / "b.jsonl", with_tokens=False)
    assert (other.weights, other.eval_share, other.seed) == (None, 0.0, 0)
    several = plan_data(document(tmp_path, data__train=["a.jsonl", "b.jsonl"], **sampled))
    assert several.request(tmp_path / "a.jsonl", with_tokens=False).eval_share == 0.0


def test_a_template_edited_in_place_is_another_one(tmp_path: Path) -> None:
    template = write(tmp_path / "mine.jinja", "{{ messages }}")
    configuration = document(tmp_path, template__file="mine.jinja")
    before = plan_data(configuration)
    assert plan_data(configuration) == before
    write(template, "{{ messages[0] }}")
    assert plan_data(configuration) != before


@cases("columns", [{"user": "nowhere", "assistant": "antwort"}, {}, {"nonsense": "frage"}])
def test_columns_that_do_not_fit_are_reported_and_the_rows_shown_all_the_same(
    tmp_path: Path, columns: dict[str, str]
) -> None:
    path = write(tmp_path / "rows.csv", "frage,antwort\nwarum,darum\n")
    plan = plan_data(document(tmp_path, data__columns=COLUMNS))
    request = plan.request(path, with_tokens=False)
    assert (request.format, request.columns, request.masks) == ("auto", COLUMNS, None)
    view = DatasetView(path, Reading("auto", tuple(columns.items())))
    assert view.detection is None
    assert isinstance(view.unknown, UserError)
    assert "data.columns" in str(view.unknown)
    assert "warum" in view.cells(range(1))[0].cells[0]
    # While nothing is named, every file is read as the configuration says.
    view.read_as(view.recognize(plan.reading.of(path)))
    assert [cell.cells for cell in view.cells(range(1))] == [("warum", "darum")]
    view.close()


def test_an_entry_is_read_by_its_own_mapping_as_far_as_it_says(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pairs(9))
    entry = {"file_name": "a.parquet", "num_samples": 4, "columns": {"prompt": "prompt", "response": "completion"}}
    write(tmp_path / "dataset_info.json", json.dumps({"mine": entry}))
    path = tmp_path / "dataset_info.json#mine"
    view = DatasetView(path, Reading("text", (("text", "nowhere"),)))
    view.file.index()
    assert (view.format_name, view.count) == ("prompt and completion", 4)
    view.close()


def test_the_first_rows_tell_the_format_also_when_they_are_long(tmp_path: Path) -> None:
    filler = "x" * 6_000_000
    rows: list[dict[str, Any]] = [{"text": filler}, {"text": filler}, *pairs(20)]
    view = DatasetView(write(tmp_path / "rows.jsonl", json_lines(rows)))
    assert view.format_name == "plain text"
    assert view.file.count_known < len(rows)
    view.file.index()
    assert view.is_guess
    assert view.recognize(view.reading).detection != view.detection
    view.close()


@cases("name", ["loop", "a\0b"])
def test_paths_that_lead_nowhere_do_not_end_the_app(tmp_path: Path, name: str) -> None:
    os.symlink(tmp_path / "loop", tmp_path / "pool")
    os.symlink(tmp_path / "pool", tmp_path / "loop")
    configuration = document(tmp_path, data__train=name)
    [path] = data_paths(configuration, "train")
    assert plan_data(configuration).reading.of(path) == Reading()
    with pytest.raises(UserError):
        DatasetView(path)


def test_what_is_invalid_has_its_default_and_the_rest_holds(tmp_path: Path) -> None:
    data = '[data]\nsupervise = "nobody"\noverlong = "refuse"\n'
    text = f'{data}[train]\nmax_length = "long"\nobjective = 5\n[chat]\nx = 1\n'
    plan = plan_data(ConfigDocument(text, tmp_path / "mine.toml"))
    assert plan == plan_data(document(tmp_path, data__overlong="refuse"))
    assert plan.reading.overlong == "refuse"
    assert plan_data(ConfigDocument("data = 5\nmodel = [1]\n", tmp_path / "mine.toml")) == plan_data(document(tmp_path))


def test_rows_become_tokens_as_a_run_would_make_them(tmp_path: Path, tiny_model_dir: Path) -> None:
    options: dict[str, Any] = {
        "model__base": str(tiny_model_dir),
        "data__train": "a.jsonl",
        "data__special_tokens": "keep",
        "data__allow": "stop_untrained",
        "template__name": "chatml",
        "train__objective": "kto",
        "train__max_length": 64,
    }
    configuration = document(tmp_path, **options)
    template = NAMED_TEMPLATES["chatml"].source
    request = request_for(configuration.validate(), model=str(tiny_model_dir), template=template)
    plan = plan_data(configuration)
    assert plan.tokens.mask_settings() == request.masks
    assert plan.tokens.settings.supervise == "last", "the answer that has the label"
    shown = plan.request(tmp_path / "a.jsonl", with_tokens=True)
    assert shown.masks == request.masks
    assert (shown.train, shown.overlong, shown.objective) == (request.train, request.overlong, request.objective)


def test_rows_left_out_of_several_files_are_looked_for_in_each(tmp_path: Path) -> None:
    excluded = {"data__exclude": ["a.jsonl:3", "b.jsonl:1-2"]}
    alone = plan_data(document(tmp_path, data__train="a.jsonl", **excluded)).reading
    assert alone.request(tmp_path / "a.jsonl").exclude == ("a.jsonl:3", "b.jsonl:1-2")
    assert not alone.request(tmp_path / "a.jsonl").is_part
    assert alone.request(tmp_path / "other.jsonl").exclude == ()
    several = plan_data(document(tmp_path, data__train=["a.jsonl", "b.jsonl"], **excluded)).reading
    assert several.request(tmp_path / "b.jsonl").exclude == ("a.jsonl:3", "b.jsonl:1-2")
    assert several.request(tmp_path / "b.jsonl").is_part
