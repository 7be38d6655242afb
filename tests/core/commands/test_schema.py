from __future__ import annotations

import json

from core.config.json_schema import json_schema
from core.config.reference import render_reference

from .conftest import CommandLine


def test_the_schema_is_printed_for_people_and_on_one_line(cli: CommandLine) -> None:
    printed = cli("schema")
    assert (printed.code, json.loads(printed.out)) == (0, json_schema())
    assert printed.out.count("\n") > 100
    assert cli("schema", "--json").json == json_schema()

    path = cli.home / "localtune.schema.json"
    path.write_text("old")
    result = cli("schema", "--out", str(path))
    assert (result.code, result.out) == (0, "")
    assert str(path) in result.err
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()
    said = cli("schema", "--out", str(path), "--json").json
    assert said == {"file": str(path), "bytes": path.stat().st_size}


def test_the_reference_page(cli: CommandLine) -> None:
    assert cli("schema", "--markdown").out == render_reference()
    path = cli.home / "configuration.md"
    assert cli("schema", "--markdown", "--out", str(path)).code == 0
    assert path.read_text(encoding="utf-8") == render_reference()


def test_a_place_that_cannot_be_written_is_one_sentence(cli: CommandLine) -> None:
    for place in (cli.home / "missing" / "a.json", cli.home):
        cli.refused("cannot be written", "schema", "--out", str(place))
