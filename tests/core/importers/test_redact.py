"""Secrets never leave the file in which they were found."""

from __future__ import annotations

from pathlib import Path

from core.importers.redact import REDACTED, cleaned, is_secret_name, redact
from tests.cases import cases
from tests.core.importers.helpers import carry

TOKEN = "hf_" + "Q7w" * 11
WANDB = "0123456789abcdef" * 2 + "01234567"


@cases(
    "name",
    ["hf_token", "hub_token", "logging.wandb_token", "comet_api_key", "swanlab_lark_secret", "api_key", "my-password"],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert redact(name, "short") == redact(name, 1234) == REDACTED
    assert redact(name, True) is True


@cases(
    "name",
    ["special_tokens.pad_token", "eos_token", "tokens", "add_tokens", "eot_tokens", "tokenizer_type", "max_new_tokens"],
)
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
    text = (
        f"base_model: https://user:{TOKEN}@host.org/m\n"
        "datasets:\n"
        f"  - path: {TOKEN}.jsonl\n    type: {TOKEN}\n    name: {TOKEN}\n"
        f"  - path: a.jsonl\n    type: alpaca\n    field: {TOKEN}\n"
        f"sequence_len: 128\nwandb_project: {TOKEN}\nhub_token: short\nhf_tokn: {TOKEN}\n{TOKEN}: 1\n"
        f"trl: {{vllm: {{api_key: short2}}}}\nlora_target_modules: [{TOKEN}]\nchat_template: {TOKEN}\n"
        f"chat_template_jinja: {TOKEN}\noptimizer: {TOKEN}\n"
    )
    imported = carry(tmp_path, text)
    everything = str(imported.to_dict()) + str(imported.unknown) + imported.reason
    assert TOKEN not in everything
    assert "short" not in everything
    assert REDACTED in everything
