"""Early stopping, the best checkpoint, packing, compilation and answers, as each tool asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.importers.convert import Imported
from tests.cases import cases
from tests.core.importers.helpers import carry, comment, entry, loaded, rows, setting

AXOLOTL = (
    "base_model: a/b\nadapter: lora\nlora_r: 8\nlora_alpha: 16\nsequence_len: 64\nlearning_rate: 1e-4\n"
    "datasets: [{path: rows.jsonl, type: alpaca}]\n"
)
LLAMA_FACTORY = "model_name_or_path: a/b\nfinetuning_type: lora\ncutoff_len: 64\n"
UNSLOTH = "model: a/b\nlora: {lora_r: 8}\n"
HELD = {"axolotl": "val_set_size: 0.1\n", "llama-factory": "val_size: 0.1\n"}
TEXTS = {"axolotl": AXOLOTL, "llama-factory": LLAMA_FACTORY, "unsloth": UNSLOTH}


def read(directory: Path, kind: str, text: str, *, held: bool = True) -> Imported:
    """Import the least that a tool takes, with rows held out, and these lines."""
    rows(directory / "rows.jsonl")
    imported = carry(directory, TEXTS[kind] + (HELD.get(kind, "") if held else "") + text, kind)
    loaded(directory, imported)
    assert not imported.unknown
    return imported


def told(imported: Imported, key: str) -> tuple[str, str | None]:
    """The list of a key, and the option that it became."""
    where, said = entry(imported, key)
    return where, said.to


# Early stopping counts evaluations without a new best, there and here; none of them has a threshold.


@pytest.mark.parametrize(
    ("kind", "key"), [("axolotl", "early_stopping_patience"), ("llama-factory", "early_stopping_steps")]
)
def test_patience_is_the_same_number_of_evaluations(tmp_path: Path, kind: str, key: str) -> None:
    imported = read(tmp_path, kind, f"{key}: 3\neval_steps: 5\nsave_steps: 10\n")
    assert told(imported, key) == ("carried", "eval.patience")
    assert setting(imported, "eval.patience") == 3
    assert setting(imported, "eval.min_delta") is None
    without = read(tmp_path, kind, f"{key}: 3\n", held=False)
    assert told(without, key) == ("unsupported", None)
    assert setting(without, "eval.patience") is None
    assert "Nothing is held out" in entry(without, key)[1].reason
    by_other = read(tmp_path, kind, f"{key}: 3\nmetric_for_best_model: rouge1\n")
    assert told(by_other, key) == ("changed", "eval.patience")
    assert told(by_other, "metric_for_best_model") == ("unsupported", None)


def test_axolotl_takes_the_best_step_wherever_it_stops_early(tmp_path: Path) -> None:
    imported = read(tmp_path, "axolotl", "early_stopping_patience: 3\nload_best_model_at_end: false\n")
    assert setting(imported, "checkpoint.final") == "best"
    assert "early_stopping_patience" in comment(imported, "checkpoint.final")
    for text in ("", "early_stopping_patience: 0\n", "load_best_model_at_end: false\n"):
        assert setting(read(tmp_path, "axolotl", text), "checkpoint.final") is None
        assert setting(read(tmp_path, "axolotl", text), "eval.patience") is None
    assert setting(read(tmp_path, "llama-factory", "early_stopping_steps: 3\n"), "checkpoint.final") is None


@cases("kind", ["axolotl", "llama-factory"])
@cases(
    ("text", "where", "final"),
    [
        ("load_best_model_at_end: true\n", "carried", "best"),
        (
            "load_best_model_at_end: true\nmetric_for_best_model: eval_loss\ngreater_is_better: false\n",
            "carried",
            "best",
        ),
        ("load_best_model_at_end: true\nmetric_for_best_model: accuracy\n", "changed", "best"),
        ("load_best_model_at_end: true\nmetric_for_best_model: loss\ngreater_is_better: true\n", "unsupported", None),
        ("load_best_model_at_end: false\n", "carried", None),
    ],
)
def test_the_best_step_is_that_of_the_lowest_loss(
    tmp_path: Path, kind: str, text: str, where: str, final: str | None
) -> None:
    imported = read(tmp_path, kind, text)
    assert entry(imported, "load_best_model_at_end")[0] == where
    assert setting(imported, "checkpoint.final") == final
    assert setting(read(tmp_path, kind, text, held=False), "checkpoint.final") is None


def test_the_metric_counts_only_where_something_asks_for_it(tmp_path: Path) -> None:
    imported = read(tmp_path, "llama-factory", "metric_for_best_model: accuracy\ngreater_is_better: true\n")
    assert [told(imported, key)[0] for key in ("metric_for_best_model", "greater_is_better")] == ["carried", "carried"]
    saved = read(tmp_path, "llama-factory", "save_strategy: best\n")
    assert told(saved, "save_strategy") == ("carried", None)


# Packing.


@cases(
    ("kind", "text", "key", "where", "words"),
    [
        ("axolotl", "sample_packing: true\n", "sample_packing", "changed", "each row of a batch is filled"),
        ("axolotl", "batch_flattening: auto\n", "batch_flattening", "carried", ""),
        ("llama-factory", "neat_packing: true\n", "neat_packing", "changed", "each row of a batch is filled"),
        ("llama-factory", "packing: true\n", "packing", "changed", "never attend to each other"),
        ("llama-factory", "packing: true\nstage: pt\n", "packing", "changed", "lie end to end"),
        ("unsloth", "training: {packing: true}\n", "training.packing", "changed", "each row of a batch is filled"),
    ],
)
def test_packing_is_carried_over_with_the_reason(
    tmp_path: Path, kind: str, text: str, key: str, where: str, words: str
) -> None:
    imported = read(tmp_path, kind, text)
    assert told(imported, key) == (where, "train.packing")
    assert words in entry(imported, key)[1].reason
    assert setting(imported, "train.packing") is True


@cases(
    ("kind", "text", "key"),
    [
        ("axolotl", "sample_packing: false\neval_sample_packing: true\n", "sample_packing"),
        ("axolotl", "sample_packing: true\nrl: dpo\n", "sample_packing"),
        ("axolotl", "sample_packing: true\nneftune_noise_alpha: 5\n", "sample_packing"),
        ("axolotl", "sample_packing: true\nnoisy_embedding_alpha: 5\n", "sample_packing"),
        ("axolotl", "batch_flattening: true\nrl: dpo\n", "batch_flattening"),
        ("llama-factory", "packing: true\nneftune_noise_alpha: 5\n", "packing"),
        ("llama-factory", "packing: true\nstage: dpo\n", "packing"),
        ("llama-factory", "packing: false\n", "packing"),
    ],
)
def test_rows_that_are_not_packed(tmp_path: Path, kind: str, text: str, key: str) -> None:
    """With noise, the configuration would be refused; with a comparison of answers, so is the file."""
    imported = read(tmp_path, kind, text)
    assert told(imported, key)[1] is None
    assert setting(imported, "train.packing") is None
    assert not imported.remarks or all("packing" not in remark for remark in imported.remarks)


@pytest.mark.parametrize(("kind", "key"), [("axolotl", "sample_packing"), ("llama-factory", "neat_packing")])
def test_the_batch_of_packed_rows_is_told_to_be_smaller(tmp_path: Path, kind: str, key: str) -> None:
    assert "Packed rows held several each" in comment(read(tmp_path, kind, f"{key}: true\n"), "train.batch_size")
    text = f"{key}: false\ngradient_accumulation_steps: 2\n"
    assert "Packed" not in comment(read(tmp_path, kind, text), "train.batch_size")


# Compilation.


def test_only_what_the_compiler_has_is_said_to_be_the_same(tmp_path: Path) -> None:
    text = "torch_compile: true\ntorch_compile_backend: eager\ntorch_compile_mode: max-autotune\n"
    imported = read(tmp_path, "axolotl", f"{text}torch_compile_options: {{shape_padding: true}}\n")
    keys = ("torch_compile_backend", "torch_compile_mode", "torch_compile_options")
    assert [told(imported, key) for key in keys] == [("unsupported", None)] * 3
    assert told(imported, "torch_compile") == ("changed", "train.compile")


# Answers while it trains, and in the chat.


def test_what_is_sampled_differently_is_told(tmp_path: Path) -> None:
    imported = read(tmp_path, "axolotl", "generate_samples: true\ngeneration_temperature: 0.9\n")
    assert told(imported, "generate_samples") == ("changed", "eval.samples")
    assert told(imported, "generation_temperature") == ("unsupported", None)


def test_the_two_names_of_noise_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"theirs\.yml, line \d+: noisy_embedding_alpha is the old name"):
        read(tmp_path, "axolotl", "noisy_embedding_alpha: 5\nneftune_noise_alpha: 5\n")


def test_what_happens_anyway_is_not_denied(tmp_path: Path) -> None:
    imported = read(tmp_path, "llama-factory", "do_eval: true\nauto_find_batch_size: true\nuse_cache: false\n")
    for key in ("do_eval", "use_cache", "auto_find_batch_size"):
        assert told(imported, key) == ("carried", None)
