"""``plan``: its output for people and as JSON, its exit codes and its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.commands.plan_text import LETTERS, bar
from core.config.schema import Config
from core.hardware.snapshot import Device
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture import measuring
from core.models.architecture.architecture import read_architecture
from tests.cases import cases, tables
from tests.core.commands.conftest import CommandLine, record_run
from tests.core.models.architecture import published

TABLES = tables(__file__)

FIELDS = {"total_bytes", "parts", "limit_bytes", "fits", "advice", "disk_bytes", "disk_free_bytes", "notes", "estimate"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model of 8 billion parameters with nothing but its configuration."""
    directory = tmp_path / "llama-8b"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    return directory


def config_file(cli: CommandLine, base: Path, **lines: Any) -> str:
    path = cli.config()
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items())
    path.write_text(f"{path.read_text()}\n[model]\nbase = {json.dumps(str(base))}\n[train]\n{settings}\n")
    return str(path)


def test_a_directory_with_nothing_but_a_configuration_is_planned(cli: CommandLine, base: Path) -> None:
    plan = cli.ok("plan", config_file(cli, base), "--gpu-memory", "24GB", "--json").json
    assert set(plan) >= FIELDS
    assert plan["limit_bytes"] == 24_000_000_000
    assert plan["fits"] is True
    assert plan["total_bytes"] == sum(plan["parts"].values())
    assert plan["parameters"] == 8_030_261_248
    assert set(plan["explanations"]) == set(plan["parts"])
    assert plan["device"] == "cuda"
    assert any("2048 tokens" in note for note in plan["notes"])


def test_a_published_model_is_planned_by_its_name_alone(cli: CommandLine, base: Path) -> None:
    """With the plan of its files, and it says so; the rows of a configuration are not measured without a tokenizer."""
    name = "unsloth/llama-3-8b-Instruct-bnb-4bit"
    alone = cli.ok("plan", "--model", name, "--gpu-memory", "24GB", "--json").json
    here = cli.ok("plan", "--model", str(base), "--gpu-memory", "24GB", "--json").json
    assert alone["notes"][0] == (
        "The model is not on this machine: the plan is by the published shape of meta-llama/Meta-Llama-3-8B."
    )
    # Other tests write to the disk.
    changed = {"model": name, "notes": [alone["notes"][0], *here["notes"]], "disk_free_bytes": alone["disk_free_bytes"]}
    assert alone == here | changed
    configured = cli.ok("plan", config_file(cli, base), "--set", f"model.base={name}", "--gpu-memory", "24GB")
    assert f"model        {name}\n" in configured.out
    assert "by the published shape of meta-llama/Meta-Llama-3-8B" in configured.out


def test_a_model_that_is_too_damaged_to_plan_for_is_reported_once(cli: CommandLine, base: Path) -> None:
    (base / "config.json").write_text("{")
    result = cli.refused("is damaged", "plan", "--model", str(base), "--gpu-memory", "24GB")
    assert result.err.count("is damaged: it is not JSON") == 1


def test_what_a_run_would_refuse_about_the_model_is_reported(cli: CommandLine, base: Path) -> None:
    config = config_file(cli, base)
    assert "would be refused" not in cli("plan", config, "--gpu-memory", "24GB").err
    (base / "pytorch_model.bin").write_bytes(b"")
    (base / "tokenizer.json").write_text("{}")
    result = cli("plan", config, "--gpu-memory", "24GB")
    assert result.code == 0
    assert "A run would be refused" in result.err
    assert "pickles only" in result.err
    described = {**published.LLAMA_3_8B, "quantization_config": {"quant_method": "hqq"}}
    (base / "config.json").write_text(json.dumps(described))
    assert "saved quantized (HQQ)" in cli("plan", config, "--gpu-memory", "24GB").err


@cases("family", ["gemma3_text", "of_tomorrow"])
def test_a_model_that_asks_for_foreign_code_is_refused_before_it_is_measured(
    cli: CommandLine, base: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_run", lambda _job: pytest.fail("measured"))
    described = {**published.LLAMA_3_8B, "model_type": family, "auto_map": {"AutoModel": "modeling.Own"}}
    (base / "config.json").write_text(json.dumps(described))
    for args in ((config_file(cli, base),), ("--model", str(base))):
        cli.refused("brings Python code of its own", "plan", *args, "--gpu-memory", "24GB")


def test_what_the_rules_find_is_reported_as_train_shows_it(cli: CommandLine, base: Path) -> None:
    config = config_file(cli, base, learning_rate=0.2, micro_batch_size=2)
    result = cli.ok("plan", config, "--gpu-memory", "24GB", "--json")
    (remark,) = [one for one in result.json["remarks"] if "train.learning_rate" in one["options"]]
    assert remark["level"] == "warning"
    assert f"{config}, line" in remark["text"]
    assert f"warning: {remark['text']}" in result.err
    assert cli("plan", "--model", str(base), "--gpu-memory", "24GB", "--json").json["remarks"] == []


def test_rules_that_a_run_would_be_refused_by_do_not_keep_a_plan_from_being_made(cli: CommandLine, base: Path) -> None:
    # A small model: nothing has to be measured for advice.
    (base / "config.json").write_text(json.dumps({**published.SMOLLM2_135M, "intermediate_size": 1_540}))
    options = ("--set", "method.name=lora", "--set", "method.train_for=q4_0", "--set", "memory.keep_dequantized=off")
    result = cli.ok("plan", config_file(cli, base), *options, "--gpu-memory", "24GB", "--json")
    assert [one["level"] for one in result.json["remarks"]][:1] == ["error"]
    assert "warning: A run would be refused: " in result.err


def test_what_does_not_fit_is_reported_with_what_would_and_exits_with_0(cli: CommandLine, base: Path) -> None:
    config = config_file(cli, base)
    tight = cli("plan", config, "--gpu-memory", "7.9GB", "--json").json
    assert (tight["fits"], tight["activation_offload"], tight["host_free_bytes"]) == (True, True, None)
    assert tight["host_bytes"] == 2 * 32 * 2048 * 4096 * 2
    plan = cli.ok("plan", config, "--gpu-memory", "7.5GB", "--json").json
    assert plan["fits"] is False
    first = plan["advice"][0]
    assert first["fits"] is True
    changes = [f"{name}={value}" for name, value in first["changes"].items()]
    flags = [word for change in changes for word in ("--set", change)]
    applied = cli("plan", config, "--gpu-memory", "7.5GB", "--json", *flags).json
    assert applied["fits"] is True
    assert applied["total_bytes"] == first["total_bytes"]


def test_for_people_every_part_has_a_line_and_a_letter(cli: CommandLine, base: Path) -> None:
    lines = cli.ok("plan", config_file(cli, base), "--gpu-memory", "7.5GB").out.splitlines()
    assert any(line.startswith("A linear weights") and "NF4" in line for line in lines)
    assert lines[0].startswith("The run does not fit in 7.5 GB: it takes ")
    stacked = next(line for line in lines if line.startswith("["))
    assert {"A", "|"} <= set(stacked)
    assert stacked.isascii()
    for name, end in (("advice", ""), ("disk", ""), ("micro-batch", "activations recomputed and offloaded")):
        assert any(line.startswith(name) and line.endswith(end) for line in lines), name
    words = ("plan", "--model", str(base), "--gpu-memory", "12GB")
    plan, shown = cli(*words, "--json").json, cli(*words).out
    assert re.match(r"The run fits in 12\.0 GB: it takes .* to spare\.\n", shown)
    assert 0 < plan["kept_layers"] < plan["layers"] == 32
    assert f"activations of {32 - plan['kept_layers']} of 32 layers recomputed" in shown
    assert plan["reason"] in shown


def test_cards_are_planned_one_by_one(cli: CommandLine, base: Path) -> None:
    asked = ("plan", "--model", str(base), "--gpu-memory", "24GB")
    assert cli(*asked, "--json").json["cards"] is None
    plan = cli(*asked, "--cards", "2", "--json").json
    assert plan["limit_bytes"] == 24_000_000_000
    assert plan["cards"]["wire_bytes"] == 4 * plan["trainable"]
    assert plan["parts"]["all_reduce"] > 0
    assert plan["cards"] == {
        "number": 2, "here": 2, "machines": 1, "strategy": "replicate", "zero_stage": None, "offload": None,
        "reason": plan["cards"]["reason"], "rows": 4, "fits": True, "host_bytes": 0, "host_fits": None,
        "wire_bytes": 167_772_160,
    }  # fmt: skip
    shown = cli(*asked, "--cards", "2").out
    assert "on each of 2 cards" in shown.splitlines()[0]
    assert plan["cards"]["reason"] in shown
    assert "168 MB sent by each card in a step" in shown


def test_cards_of_a_configuration_are_planned_as_it_shares_them(cli: CommandLine, base: Path) -> None:
    options = ("strategy=deepspeed", "zero_stage=3", "offload=all", "processes=2")
    flags = [word for option in options for word in ("--set", f"distributed.{option}")]
    words = ("plan", config_file(cli, base), *flags, "--gpu-memory", "12GB")
    cards = cli(*words, "--json").json["cards"]
    assert (cards["number"], cards["here"], cards["machines"]) == (2, 2, 1)
    assert (cards["strategy"], cards["zero_stage"], cards["offload"]) == ("deepspeed", 3, "all")
    assert cards["host_bytes"] > 0
    shown = cli(*words).out
    assert "of each machine's memory" in shown
    line = (
        "torchrun --nnodes {} --nproc-per-node 2 --node-rank 0 --master-addr {} --master-port 29500 -m core.worker RUN"
    )
    assert line.format(1, "127.0.0.1") in shown
    hosts = ("--set", "distributed.hosts=tower", "--set", "distributed.address=10.0.0.1")
    cli.refused(line.format(2, "10.0.0.1"), *words, *hosts)


def test_rows_are_measured_where_there_is_a_tokenizer_and_unused_ones_are_reported(
    cli: CommandLine, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # the helper process needs the real interpreter
    monkeypatch.setenv("LOCALTUNE_HOME", str(cli.home))
    model, rows = tmp_path / "tiny", tmp_path / "rows.jsonl"
    shutil.copytree(tiny_model_dir, model)
    measured = cli.ok("plan", config_file(cli, model), "--gpu-memory", "24GB", "--json").json
    assert measured["micro_batch"]["rows"] == 3
    assert measured["micro_batch"]["length"] < 64
    unmeasured = cli("plan", config_file(cli, model), "--gpu-memory", "24GB", "--json", "--lengths", "never").json
    assert unmeasured["micro_batch"]["length"] == 512
    assert unmeasured["total_bytes"] > measured["total_bytes"]
    pictures = {"prompt": "<image>Who?", "completion": "Kane.", "images": ["a.png"]}
    rows.write_text("".join(json.dumps(row) + "\n" for row in (pictures, {**pictures, "audio": "a"}, {"a": 1})))
    path = config_file(cli, model)
    result = cli.ok("plan", path, "--set", f"data.train={rows}", "--gpu-memory", "24GB", "--json")
    assert "warning: 2 rows are not used (has_media). The column images holds pictures" in result.err
    assert "1 row is not used (wrong_keys)" in result.err


def test_without_an_earlier_run_the_plan_shows_how_long_it_takes(cli: CommandLine, base: Path) -> None:
    path = config_file(cli, base, max_steps=30)
    estimate = cli("plan", path, "--gpu-memory", "24GB", "--json").json["estimate"]
    assert estimate.pop("seconds") > 30
    assumed = ["rows of 2048 tokens", "the speed of a common card"]
    assert estimate == {
        "steps": 30, "watt_hours": None, "run": "", "by": "plan", "assumed": assumed, "elsewhere": True,
        "early_end": None, "work_share": 1.0, "between_seconds": 0.0, "evaluations": 0,
        "evaluation_seconds": 0.0, "runs": 0,
    }  # fmt: skip
    out = cli("plan", path, "--gpu-memory", "24GB").out
    what = "rows of 2048 tokens and the speed of a common card assumed"
    assert f"for 30 steps, by the plan (for a card that is not here; {what})" in out
    assert "device       a GPU that is not here, 24.0 GB free" in out


def test_an_earlier_run_shows_how_long_it_takes(cli: CommandLine, base: Path) -> None:
    path = config_file(cli, base, max_steps=30)
    run = record_run(Path(path), seconds=4.0)
    estimate = cli("plan", path, "--json").json["estimate"]
    assert estimate == {
        "seconds": 120.0, "steps": 30, "watt_hours": None, "run": run.id, "by": "pace", "assumed": [],
        "elsewhere": False, "early_end": None, "work_share": 1.0, "between_seconds": 0.0, "evaluations": 0,
        "evaluation_seconds": 0.0, "runs": 1,
    }  # fmt: skip
    assert f"about 2m 00s for 30 steps, at the pace of {run.id}" in cli("plan", path).out
    cut = cli("plan", path, "--set", "train.max_hours=0.01").out
    end = "ends after 0.01 h by train.max_hours, at about step 9 of 30"
    assert f"about 36s, at the pace of {run.id}; {end}" in cut
    # The pace is that of this machine, and not of a card that is elsewhere.
    other = cli("plan", path, "--gpu-memory", "24GB", "--json").json["estimate"]
    assert (other["by"], other["run"], other["elsewhere"]) == ("plan", "", True)
    month = ("--set", "night.deadline=07:00", "--set", "train.max_steps=700000")
    told = cli("plan", path, *month, "--json")
    (wish,) = told.json["unmet"]
    assert (wish["option"], wish["is_measured"]) == ("night.deadline", True)
    assert f"A run would be refused without --yes: {wish['sentence']} {wish['hint']}" in told.err
    assert cli("plan", path, *month, "--gpu-memory", "24GB", "--json").json["unmet"] == [], "it runs elsewhere"


@cases(("changes", "words"), TABLES["bad_input_is_one_clear_line_and_exits_with_1"])
def test_bad_input_is_one_clear_line_and_exits_with_1(
    cli: CommandLine, base: Path, changes: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [])
    memory = () if "hardware.device=cuda" in changes or "--gpu-memory" in changes else ("--gpu-memory", "24GB")
    cli.refused(words, "plan", config_file(cli, base), *memory, *changes)


def test_missing_data_is_planned_with_rows_of_the_greatest_length(cli: CommandLine, base: Path, tmp_path: Path) -> None:
    memory = ("--gpu-memory", "24GB", "--json")
    missing = cli.ok("plan", config_file(cli, base), *memory, "--set", "data.train=nowhere.jsonl").json
    assert missing["total_bytes"] > 5e9
    path = tmp_path / "no-data.toml"
    path.write_text(f"[model]\nbase = {json.dumps(str(base))}\n[train]\nmax_length = 1024\n")
    plan = cli.ok("plan", str(path), *memory).json
    assert plan["micro_batch"]["length"] == 1024
    assert any("1024 tokens" in note for note in plan["notes"])


@cases(("flags", "length", "trainable"), TABLES["a_model_is_planned_without_a_configuration"])
def test_a_model_is_planned_without_a_configuration(
    cli: CommandLine, base: Path, flags: tuple[str, ...], length: int, trainable: int
) -> None:
    plan = cli.ok("plan", "--model", str(base), *flags, "--gpu-memory", "24GB", "--json").json
    assert (plan["trainable"], plan["micro_batch"]["length"]) == (trainable, length)
    assert plan["limit_bytes"] == 24_000_000_000
    assert not list(cli.home.rglob("*.toml"))


@cases(("words", "told"), TABLES["bad_input_without_a_configuration_is_one_clear_line"])
def test_bad_input_without_a_configuration_is_one_clear_line(
    cli: CommandLine, base: Path, words: tuple[str, ...], told: str
) -> None:
    cli.refused(told, "plan", *(str(base) if word == "BASE" else word for word in words))


def _planned(kind: Any, limit: int | None) -> Plan:
    config = Config.model_validate({"data": {"train": "x"}})
    return make_plan(read_architecture(published.LLAMA_3_8B, "x"), config, Machine(kind, limit))


@cases("limit", [None, 2_000_000_000, 11_000_000_000, 500_000_000_000])
@cases("kind", ["cuda", "cpu"])
def test_the_bar_is_as_wide_as_it_says(limit: int | None, kind: Any) -> None:
    plan = _planned(kind, limit)
    drawn, measure = bar(plan, 60)
    assert len(drawn) == (62 if plan.fits is not False else 63)
    assert ("|" in drawn) == ("behind | is too much" in measure) == (plan.fits is False)


def test_a_letter_of_the_bar_is_the_part_that_fills_most_of_it() -> None:
    plan = _planned("cuda", 500_000_000_000)
    drawn, measure = bar(plan, 20)
    assert measure.startswith("each letter is 25.0 GB:")
    # Of 53 GB, 14 are dequantized weights, 24 activations; nothing else has most of 25 GB.
    assert drawn == "[BH" + "." * 18 + "]"
    drawn, _ = bar(replace(plan, limit_bytes=plan.total_bytes), 10)
    sizes = [part.bytes for part in plan.parts]
    each, largest = plan.total_bytes / 10, sizes.index(max(sizes))
    assert drawn.count(LETTERS[largest]) == pytest.approx(sizes[largest] / each, abs=1)
    for letter in set(drawn[1:-1]):
        size = sizes[LETTERS.index(letter)]
        assert size >= each / len(sizes), f"{letter} fills most of no letter"


@cases("columns", [40, 80, 120])
def test_lines_are_wrapped_beside_what_leads_them(
    cli: CommandLine, base: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    words = ("plan", config_file(cli, base), "--gpu-memory", "8GB")
    whole = cli(*words).out.splitlines()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))
    lines = cli(*words).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert " ".join(" ".join(lines[:4]).split()).startswith(whole[0]), "piped output has whole lines"


def test_what_a_run_s_device_cannot_keep_is_reported(
    cli: CommandLine, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Device(index=0, kind="cpu", name="Some CPU")
    monkeypatch.setattr("core.governor.check.read_device", lambda *_: cpu)
    path = config_file(cli, base)
    sentence = "Some CPU does not report its power, so night.energy_kwh cannot be kept. Leave it out."
    words = ("--set", "night.energy_kwh=1", "--lengths", "never")
    result = cli("plan", path, *words, "--json")
    assert f"A run would be refused: --set night.energy_kwh: {sentence}" in result.err
    assert result.json["remarks"][0]["options"] == ["night.energy_kwh"]
    assert "cannot be kept" not in cli("plan", path, *words, "--gpu-memory", "24GB").err, "that card is elsewhere"
    cli.refused(sentence, "train", path, "--set", "night.energy_kwh=1", "--detach")
