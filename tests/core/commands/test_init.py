from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import sample_data
from core.commands import configuration
from core.config.document import ConfigDocument
from core.hardware.card import Card
from core.presets.library import find_preset, presets
from core.runs.record.store import find_run
from tests.cases import cases, tables
from tests.families.published_models import published_config

from .conftest import CommandLine

TABLES = tables(__file__)

CONFIG = (
    '{{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, '
    '"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": false, '
    '"max_position_embeddings": {positions}}}'
)


@pytest.fixture
def work(cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with data and a model's config.json, on a machine with a card of 24 GB."""
    directory = tmp_path / "work"
    (directory / "llama").mkdir(parents=True)
    (directory / "llama" / "config.json").write_text(CONFIG.format(positions=131072))
    shutil.copy(sample_data.path("tickets_train.jsonl"), directory / "rows.jsonl")
    shutil.copy(sample_data.path("tickets_eval.jsonl"), directory / "held-out.jsonl")
    monkeypatch.chdir(directory)
    monkeypatch.setattr(configuration, "find_card", lambda **_: Card("RTX 4090", 25_757_220_864, (8, 9)))
    return directory


def test_a_file_is_written_that_can_be_trained(cli: CommandLine, work: Path) -> None:
    result = cli.ok("init", "--model", "llama", "--data", "rows.jsonl", "--eval", "held-out.jsonl")
    assert "the RTX 4090 has 24 GB" in result.out
    text = (work / "rows.toml").read_text()
    config = ConfigDocument.load(work / "rows.toml").validate()
    assert (config.model.base, config.data.train) == (str(work / "llama"), str(work / "rows.jsonl"))
    assert config.data.eval == str(work / "held-out.jsonl")
    for name, value in find_preset("24gb-7b").values.items():
        section, _, key = name.partition(".")
        assert getattr(getattr(config, section), key) == value
    # Relative, so that the directory can be moved; every option below its help.
    assert 'train = "rows.jsonl"' in text
    for number, line in enumerate(text.splitlines()):
        if "=" in line and not line.startswith("#"):
            assert text.splitlines()[number - 1].startswith("# ")
    assert max(map(len, text.splitlines())) <= 120
    cli.script(steps=1)
    cli.ok("train", "rows.toml")


def test_a_card_that_is_elsewhere_is_chosen_for(cli: CommandLine, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "find_card", lambda **_: None)
    asked = ("init", "--model", "llama", "--data", "rows.jsonl", "--out", "-", "--json")
    assert cli(*asked, "--gpu-memory", "24GB").json["preset"] == "24gb-7b"
    result = cli(*asked, "--gpu-memory", "12GiB")
    assert result.json["preset"].startswith("12gb-")
    assert "the card has 12 GB" in result.json["why"]
    assert "--gpu-memory much is no size" in cli(*asked, "--gpu-memory", "much").err


def test_a_file_that_is_there_is_not_replaced(cli: CommandLine, work: Path) -> None:
    (work / "rows.toml").write_text("# mine\n")
    assert "--force" in cli.refused("rows.toml exists already", "init", "--data", "rows.jsonl").err
    assert (work / "rows.toml").read_text() == "# mine\n"
    (work / "link.toml").symlink_to("nowhere")
    assert cli("init", "--data", "rows.jsonl", "--out", "link.toml").code == 1
    assert cli("init", "--data", "rows.jsonl", "--force").code == 0
    assert "[data]" in (work / "rows.toml").read_text()


def test_the_preset_that_is_named_is_taken(cli: CommandLine, work: Path) -> None:
    result = cli("init", "--model", "llama", "--data", "rows.jsonl", "--preset", "24gb-7b-quick-look", "--json")
    assert (result.json["file"], result.json["preset"]) == ("rows.toml", "24gb-7b-quick-look")
    assert (work / "rows.toml").read_text() == result.json["toml"]
    assert ConfigDocument.load(work / "rows.toml").validate().train.max_steps == 60
    cli.refused("Did you mean 24gb-7b?", "init", "--data", "rows.jsonl", "--preset", "24gb-7", "--out", "b.toml")
    assert not os.path.exists("b.toml")


def test_aims_and_positions_are_looked_at(cli: CommandLine, work: Path) -> None:
    (work / "llama" / "config.json").write_text(CONFIG.format(positions=2048))
    result = cli("init", "--model", "llama", "--data", "rows.jsonl", "--aim", "long-context", "--out", "-")
    config = ConfigDocument(result.out, work / "x.toml").validate()
    assert config.train.max_length == 2048
    assert "24gb-7b-long-context" in result.err
    assert "the model reads no more" in result.err
    assert "warning" not in result.err
    result = cli("init", "--model", "llama", "--data", "rows.jsonl", "--preset", "24gb-7b", "--out", "-")
    assert "warning: train.max_length is 4096, and the model was made for rows of 2048" in result.err


def test_elsewhere_paths_are_still_right(cli: CommandLine, work: Path) -> None:
    (work / "sub").mkdir()
    assert cli("init", "--data", "rows.jsonl", "--data", "held-out.jsonl", "--out", "sub/a.toml").code == 0
    config = ConfigDocument.load(work / "sub" / "a.toml").validate()
    assert config.data.train == [str(work / "rows.jsonl"), str(work / "held-out.jsonl")]


@cases(("row", "words", "objective", "rate"), TABLES["objectives"])
def test_the_rows_decide_the_objective(
    cli: CommandLine, work: Path, row: dict[str, object], words: list[str], objective: str, rate: float
) -> None:
    (work / "rows.jsonl").write_text(json.dumps(row) + "\n")
    made = cli.ok("init", "rows.jsonl", "--model", "llama", "--preset", "24gb-7b", "--out", "-", *words)
    config = ConfigDocument(made.out, work / "x.toml").validate()
    assert (config.train.objective, config.train.learning_rate) == (objective, rate)
    reason = f"train.objective is {objective}, as rows.jsonl holds"
    assert (reason in made.err) == (f"# {reason}" in made.out) == (objective != "sft" and not words)


def test_options_are_set_and_those_of_the_preset_that_they_replace_are_not_written(
    cli: CommandLine, work: Path
) -> None:
    words = ("--set", "train.max_steps=7", "--set", "train.seed=3", "--columns", "user=question,assistant=answer")
    (work / "faq.csv").write_text("question,answer\nq,a\n")
    made = cli.ok("init", "faq.csv", "--model", "llama", "--out", "-", *words)
    config = ConfigDocument(made.out, work / "x.toml").validate()
    assert (config.train.max_steps, config.train.seed) == (7, 3)
    assert "epochs =" not in made.out
    assert config.data.columns == {"user": "question", "assistant": "answer"}


@cases(("words", "said"), TABLES["what_cannot_be_is_one_sentence"])
def test_what_cannot_be_is_one_sentence(cli: CommandLine, work: Path, words: list[str], said: str) -> None:
    before = sorted(os.listdir(work))
    cli.refused(said, "init", *words)
    assert sorted(os.listdir(work)) == before


def test_presets_are_listed(cli: CommandLine) -> None:
    listed = cli("init", "--list").out
    assert [line.split()[0] for line in listed.splitlines()] == list(presets())
    entries = cli("init", "--list", "--json").json
    assert [entry["name"] for entry in entries] == list(presets())
    assert entries[0]["values"]["method.rank"] == 16


def test_train_fills_what_the_file_leaves_out(cli: CommandLine, work: Path) -> None:
    (work / "my.toml").write_text('[model]\nbase = "llama"\n[data]\ntrain = "rows.jsonl"\n[train]\nbatch_size = 5\n')
    cli.script(steps=1)
    result = cli.ok("train", "my.toml", "--preset", "auto", "--set", "train.max_length=1000")
    config = find_run("latest").config()
    preset = find_preset("24gb-7b").values
    assert (config.train.batch_size, config.train.max_length) == (5, 1000)
    assert (config.method.rank, config.method.alpha) == (preset["method.rank"], preset["method.alpha"])
    assert "preset 24gb-7b, as the model has 8.03 billion parameters" in result.err
    assert "It sets method.name, method.rank" in result.err
    assert cli("train", "my.toml", "--preset", "none").code == 1
    assert "batch_size = 5\n" in (work / "my.toml").read_text()


def test_rows_are_held_out_where_there_are_enough(cli: CommandLine, work: Path) -> None:
    assert "40 of 400 rows held out (data.eval_share)" in cli.ok("init", "--data", "rows.jsonl", "--out", "a.toml").err
    text = (work / "a.toml").read_text()
    assert "eval_share = 0.1" in text
    assert "every_epochs" not in text, "a run so short is measured at its end"
    cli.ok("init", "--data", "rows.jsonl", "--set", "train.epochs=20", "--set", "eval.samples=0", "--out", "long.toml")
    assert "every_epochs = 0.5" in (work / "long.toml").read_text()
    assert "# eval =" not in text, "only one of both can say what is held out"
    assert ConfigDocument.load(work / "a.toml").validate().data.eval_share == 0.1
    cli.ok("init", "--data", "rows.jsonl", "--eval", "held-out.jsonl", "--out", "b.toml")
    assert "eval_share" not in (work / "b.toml").read_text()
    (work / "few.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    cli.ok("init", "--data", "few.jsonl")
    assert "eval_share" not in (work / "few.toml").read_text()


@pytest.mark.long
def test_the_advice_for_the_model_is_taken_and_told_with_its_source(cli: CommandLine, work: Path) -> None:
    (work / "llama").rename(work / "gemma-3-4b-it")
    config = published_config("Gemma-3-4B")
    (work / "gemma-3-4b-it" / "config.json").write_text(json.dumps(config))
    source = "unslothai/unsloth@015bdef studio/backend/assets/configs/inference_defaults.json"
    result = cli.ok("init", "--model", "gemma-3-4b-it", "rows.jsonl")
    assert f"chat.top_k = 64, Gemma 3: What Unsloth takes for it. ({source})" in result.err
    assert "Gemma 3: It has no system role" in result.err
    text = (work / "rows.toml").read_text()
    lines = text.splitlines()
    assert lines[lines.index("top_k = 64") - 1].endswith("inference_defaults.json)")
    assert "# Not written, for you to decide: Gemma 3: It has no system role" in text
    assert max(map(len, lines)) <= 120
    chat = ConfigDocument.load(work / "rows.toml").validate().chat
    assert (chat.temperature, chat.top_p, chat.top_k) == (1.0, 0.95, 64)
    answer = json.loads(cli("init", "--model", "gemma-3-4b-it", "rows.jsonl", "--out", "-", "--json").out)
    by_option = {item["option"]: item for item in answer["advice"]}
    assert by_option["chat.top_k"]["value"] == 64
    assert by_option["chat.top_k"]["taken"]
    assert by_option["chat.top_k"]["source"] == source
    assert not by_option[None]["taken"]
