"""Whose a file is, and that no key of any tool is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config.document import ConfigDocument
from core.config.schema import find_option
from core.errors import UserError
from core.importers.convert import FORMS, import_config
from core.importers.redact import REDACTED, cleaned, is_secret_name, redact
from core.importers.tool import Choice, Copy, Tool, Unsupported
from core.importers.translation import is_one_of
from tests.cases import cases, tables
from tests.core.data.sample_files import write
from tests.core.importers.helpers import assert_all_accounted, carry, entries, entry, loaded, setting
from tests.examples import examples

TABLES = tables(__file__)

EVERY = list(FORMS.values())
MINIMAL = {
    "axolotl": "base_model: a/b\nsequence_len: 64\n",
    "llama-factory": "model_name_or_path: a/b\ncutoff_len: 64\n",
    "llama-factory-v1": "model: a/b\ntrain_dataset: a/b\nmodel_class: llm\n",
    "unsloth": "model: a/b\ntraining: {max_seq_length: 64}\n",
}


@cases("kind", FORMS)
def test_whose_it_is_is_seen_from_its_keys(tmp_path: Path, kind: str) -> None:
    imported = carry(tmp_path, MINIMAL[kind])
    assert imported.kind == kind
    assert imported.title in imported.reason
    first = next(iter(yaml.safe_load(MINIMAL[kind])))
    assert any(word in imported.reason for word in (first, "training", "train_dataset"))


@cases(("text", "part"), TABLES["files_of_which_it_cannot_be_told"])
def test_files_of_which_it_cannot_be_told(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(UserError, match=part) as caught:
        carry(tmp_path, text)
    assert "--from" in caught.value.hint or "training" in caught.value.hint


def test_a_configuration_of_ours_needs_no_import(tmp_path: Path) -> None:
    write(tmp_path / "ours.toml", "[train]\nepochs = 2\n")
    with pytest.raises(UserError, match="is TOML; configurations of other tools are YAML"):
        import_config(tmp_path / "ours.toml")


@cases(("kind", "line", "guess"), TABLES["a_key_that_the_tool_does_not_have"])
def test_a_key_that_the_tool_does_not_have(tmp_path: Path, kind: str, line: str, guess: str) -> None:
    imported = carry(tmp_path, MINIMAL[kind] + line + "\n")
    (unknown,) = imported.unknown
    assert (unknown.line, unknown.guess) == (3, guess)
    where, said = entry(imported, unknown.key)
    assert where == "unsupported"
    assert said.reason.startswith("Unknown")
    assert not guess or f"Did you mean {guess}?" in said.reason


@cases(("kind", "text", "line", "part"), TABLES["what_a_tool_refuses_is_refused"])
def test_what_a_tool_refuses_is_refused(tmp_path: Path, kind: str, text: str, line: int, part: str) -> None:
    with pytest.raises(UserError) as caught:
        carry(tmp_path, f"{MINIMAL[kind]}{text}\n")
    assert caught.value.message.startswith(f"{tmp_path}/theirs.yml, line {line}: {part}")


def test_what_is_out_of_our_range_keeps_the_default(tmp_path: Path) -> None:
    imported = carry(
        tmp_path, MINIMAL["axolotl"] + "lora_r: 4096\nlora_dropout: 1.0\nseed: -1\nsave_total_limit: 5000\n"
    )
    for key in ("lora_r", "lora_dropout", "seed", "save_total_limit"):
        where, said = entry(imported, key)
        assert (where, said.to) == ("unsupported", None)
        assert "must be" in said.reason
    loaded(tmp_path, imported)


def test_paths_start_where_the_tool_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file below ``configs`` whose paths start at the top, imported from somewhere else."""
    repo, elsewhere = tmp_path / "repo", tmp_path / "elsewhere"
    write(repo / "data" / "a.jsonl", '{"text": "x"}\n')
    (repo / "models" / "m").mkdir(parents=True)
    elsewhere.mkdir()
    text = "base_model: models/m\nsequence_len: 64\ndatasets: [{path: data/a.jsonl, type: completion}]\n"
    path = write(repo / "configs" / "deep" / "x.yml", text)
    monkeypatch.chdir(elsewhere)
    imported = import_config(path)
    assert setting(imported, "data.train") == str(repo / "data" / "a.jsonl")
    assert setting(imported, "model.base") == str(repo / "models" / "m")
    assert str(repo) in entry(imported, "datasets")[1].reason
    near = import_config(path, None, repo)
    assert setting(near, "data.train") == os.path.join("data", "a.jsonl")
    config = loaded(repo, near)
    assert config.data.train == str(repo / "data" / "a.jsonl")
    assert config.model.base == str(repo / "models" / "m")


# No key is lost, whatever a file says.

_TEXTS = st.sampled_from(
    ["", "none", "all", "auto", "x", "a, b", "steps", "epoch", "cosine", "adamw_torch", "2e-4", "7"]
)
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 70_000), st.floats(0, 2), _TEXTS)
_ANY = st.recursive(
    _SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=4,
)
_NUMBERS = st.none() | st.integers(0, 3000) | st.floats(0, 3) | st.sampled_from(["2e-4", "16", "0.1"])
_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "integer": st.none() | st.integers(0, 5000) | st.just("16"),
    "number": _NUMBERS,
    "boolean": st.none() | st.booleans() | st.just("true"),
    "text": st.none() | _TEXTS,
    "texts": st.none() | _TEXTS | st.lists(st.sampled_from(["a", "b"]), max_size=2),
}
_WORDS = ("load_in", "train_on", "mask_", "bf16", "fp16", "gptq", "float", "linear", "pure_")
_COUNTS = ("steps", "size", "ratio", "len", "_r", "rank", "alpha", "bit", "accumulation", "epochs")


def _value(tool: Tool, key: str) -> st.SearchStrategy[Any]:
    """Mostly values that the key may have."""
    rule = tool.table[key]
    if isinstance(rule, Copy):
        return _KINDS[rule.kind]
    if isinstance(rule, Choice):
        return st.none() | st.sampled_from([*rule.same, *rule.near, "another"])
    if isinstance(rule, Unsupported):
        return _ANY
    name = key.rpartition(".")[2]
    if name in ("datasets", "test_datasets"):
        entry_ = st.fixed_dictionaries(
            {"path": st.sampled_from(["a/b", "x.jsonl", "json"])},
            optional={
                "type": st.sampled_from([None, "alpaca", "chat_template", "completion", "sharegpt", "jeopardy", "odd"]),
                "split": st.sampled_from(["train", "test[:5]", "a+b", "train[:5%]", "[", 3]),
                "data_files": st.sampled_from(["x.jsonl", ["y.jsonl"]]),
                "chat_template": st.sampled_from(["llama3", "odd"]),
                "name": _TEXTS,
                "revision": st.sampled_from(["main", "a b", "0" * 40]),
                "odd": _SCALARS,
            },
        )
        return st.none() | st.lists(entry_, max_size=3)
    if any(word in name for word in _WORDS):
        return _KINDS["boolean"]
    if any(word in name for word in _COUNTS) and "warmup" not in name:
        return st.none() | st.integers(0, 4096)
    return _NUMBERS if "warmup" in name else _KINDS["texts"]


@st.composite
def _files(draw: st.DrawFn) -> tuple[Tool, dict[str, Any]]:
    tool = draw(st.sampled_from(EVERY))
    offered = [key for key, rule in tool.table.items() if not isinstance(rule, Unsupported)]
    keys = draw(st.lists(st.sampled_from(offered), unique=True, max_size=12))
    keys += draw(st.lists(st.sampled_from([key for key in tool.table if key not in offered]), unique=True, max_size=6))
    values: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.rpartition(".")
        place = values.setdefault(section, {}) if section else values
        place[name] = draw(_value(tool, key))
    if draw(st.booleans()):
        values[draw(st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=10))] = draw(_ANY)
    return tool, values


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_files())
def test_every_key_is_accounted_for_once(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[Tool, dict[str, Any]]
) -> None:
    tool, values = file
    directory = tmp_path_factory.getbasetemp()
    text = yaml.safe_dump(values, allow_unicode=True)
    imported, refused = None, ""
    try:
        imported = carry(directory, text, tool.kind)
    except UserError as error:
        refused = str(error)
    if imported is None:
        assert "theirs.yml" in refused
        assert "\n" not in refused
        return
    assert_all_accounted(imported, values)
    named = [name for said in entries(imported) for name in (said.to.split(", ") if said.to else [])]
    assert all(find_option(name) is not None for name in named)
    document = ConfigDocument(imported.toml, directory / "ours.toml")
    document.validate()
    assert not document.problems()


@settings(max_examples=examples(150), deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_texts_are_what_they_were(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.getbasetemp()
    source = yaml.safe_dump({"base_model": text, "sequence_len": 64, "lora_target_modules": [text]})
    imported = carry(directory, source)
    found = ConfigDocument(imported.toml).get("model.base")
    where, _ = entry(imported, "base_model")
    assert where != "carried" or not text.strip() or found == text.strip()
    assert not set("\x1b\x7f\x9b\u202e\u2028") & set(imported.toml)


def test_truth_values_are_no_numbers() -> None:
    assert not is_one_of(True, (1,))
    assert not is_one_of(0, (False,))
    assert is_one_of("None", ("none",))
    assert is_one_of([], ([],))


TOKEN = "hf_" + "Q7w" * 11
WANDB = "0123456789abcdef" * 2 + "01234567"


@cases("name", TABLES["names_of_secrets"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert redact(name, "short") == redact(name, 1234) == REDACTED
    assert redact(name, True) is True


@cases("name", TABLES["tokens_of_a_vocabulary"])
def test_tokens_of_a_vocabulary_are_none(name: str) -> None:
    assert redact(name, "<|end|>") == "<|end|>"


def test_values_that_look_like_secrets_whatever_they_are_called() -> None:
    assert redact("wandb_project", TOKEN) == REDACTED
    assert redact("note", {"a": [TOKEN, "fine"], TOKEN: 1}) == {"a": [REDACTED, "fine"], REDACTED: 1}
    assert redact("mlflow_tracking_uri", "https://me:hunter22@host.org/x") == REDACTED
    assert redact("note", WANDB) == REDACTED
    assert redact("model_revision", WANDB) == WANDB
    assert redact("note", "x" * 5000) == "x" * 399 + "…"
    assert cleaned(f"has the type {TOKEN}, which is none") == f"has the type {REDACTED} which is none"


def test_nothing_of_them_is_written_or_reported(tmp_path: Path) -> None:
    imported = carry(tmp_path, yaml.safe_dump(TABLES["a_file_full_of_secrets"]).replace("TOKEN", TOKEN))
    everything = str(imported.to_dict()) + str(imported.unknown) + imported.reason
    assert TOKEN not in everything
    assert "short" not in everything
    assert REDACTED in everything


@cases(("kind", "lines", "key", "option", "value", "reason"), TABLES["repeated_keys"])
def test_the_last_of_repeated_keys_counts_and_is_told(
    tmp_path: Path, kind: str, lines: str, key: str, option: str, value: Any, reason: str
) -> None:
    imported = carry(tmp_path, MINIMAL[kind] + lines)
    where, said = entry(imported, key)
    assert where == "changed"
    assert reason in said.reason
    assert setting(imported, option) == value
    assert not imported.unknown
