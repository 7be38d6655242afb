from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.export.llama_cpp import NotVerifiedError, refuse_unreadable
from core.export.request import Quant
from core.export.result import Agreement
from core.runs.catalog.trained import TrainedModel, find_trained
from core.worker.export.verify import job as proof
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import make_trained_run, merged_model, write_rows
from tests.progress import quiet

pytest.importorskip("llama_cpp_py_sync")


@dataclass(frozen=True)
class Measured:
    """A run whose trained model has been measured."""

    trained: TrainedModel
    directory: Path
    model: Any
    """The base with the adapter merged into it."""
    tokenizer: Any

    def gguf(self, path: Path, **how: Any) -> Path:
        """The merged model as a GGUF file."""
        return write_tiny_gguf(path, self.model, self.tokenizer, **how)

    def compare(self, path: Path, quant: Quant | None = "F32", **more: Any) -> Agreement:
        """The agreement of a GGUF file."""
        return proof.compare_export(path, "gguf", quant, self.trained, self.directory, quiet, **more)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Measured]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(tmp_path_factory.mktemp("measured-home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        place = tmp_path_factory.mktemp("measured")
        held_out = write_rows(place / "held_out.jsonl", 5)
        run = make_trained_run(tiny_model_dir, write_rows(place / "rows.jsonl"), eval_data=held_out)
        trained = find_trained(run)
        directory = place / "answers"
        directory.mkdir()
        proof.measure_trained(trained, directory, quiet, 5, plain_base=True, as_file=True)
        yield Measured(trained, directory, *merged_model(tiny_model_dir, run.adapter_path))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_right_file_agrees(measured: Measured, tmp_path: Path, kind: Quant) -> None:
    found = measured.compare(measured.gguf(tmp_path / "model.gguf", kind=kind), kind)
    assert found.failures(kind) == []
    assert (found.rows, found.prompts_equal, found.data, found.arithmetic) == (5, True, "eval", "fp32")
    assert found.reader.startswith("llama.cpp b")
    assert found.mean_kl is not None
    assert found.base_kl is not None
    assert found.mean_kl < 1e-3 < found.base_kl
    if kind != "Q8_0":
        assert (found.top1, found.greedy_equal, found.greedy_rows) == (1.0, 5, 5)


def test_another_template_or_tokenizer_makes_other_prompts(measured: Measured, tmp_path: Path) -> None:
    template = measured.tokenizer.chat_template
    longer = template.replace("assistant\n", "assistant\n\n")
    assert longer != template
    names = [measured.tokenizer.convert_ids_to_tokens(number) for number in range(len(measured.tokenizer))]
    first, second = names.index("Ġa"), names.index("u")
    swapped = {first: names[second], second: names[first]}
    changes: list[dict[str, Any]] = [
        *({"template": wrong} for wrong in (longer, "{{ raise_exception('no') }}", "<|endoftext|>" + template)),
        {"change_token": lambda number, text: swapped.get(number, text)},
    ]
    for change in changes:
        found = measured.compare(measured.gguf(tmp_path / "model.gguf", **change))
        assert (found.prompts_equal, found.max_delta is not None) == (False, True)
        assert "other tokens of a prompt" in found.failures("F32")[0]
    with pytest.raises(UserError, match="no chat template"):
        measured.compare(measured.gguf(tmp_path / "model.gguf", template=None))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_damaged_weights_are_seen(measured: Measured, tmp_path: Path, kind: Quant) -> None:
    def damage(name: str, weight: Any) -> Any:
        return -weight if name == "token_embd.weight" else weight

    found = measured.compare(measured.gguf(tmp_path / "model.gguf", kind=kind, change_weight=damage), kind)
    assert found.prompts_equal
    assert any("logits" in said for said in found.failures(kind))


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_an_export_without_what_was_learned_is_seen(
    measured: Measured, tmp_path: Path, tiny_model_dir: Path, kind: Quant
) -> None:
    path = write_tiny_gguf(tmp_path / "base.gguf", *merged_model(tiny_model_dir, None), kind=kind)
    found = measured.compare(path, kind)
    assert "the training is not in it" in found.failures(kind)[0]


def test_a_file_that_is_damaged_or_of_another_type_is_a_sentence(measured: Measured, tmp_path: Path) -> None:
    def damage(name: str, weight: Any) -> Any:
        return weight * float("nan") if name == "blk.0.ffn_norm.weight" else weight

    broken = measured.compare(measured.gguf(tmp_path / "model.gguf", change_weight=damage))
    assert broken.failures("F32")[0] == "It computes values that are no numbers (NaN or infinite)."
    path = measured.gguf(tmp_path / "model.gguf")
    with pytest.raises(UserError, match="does not say that its weights are Q8_0"):
        measured.compare(path, "Q8_0")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is cut short"):
        measured.compare(path)


def test_a_reader_that_is_killed_is_a_sentence_and_leaves_nothing(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = measured.gguf(tmp_path / "model.gguf")
    dying = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setattr(proof, "PROGRAM", dying)
    with pytest.raises(UserError, match="The reader of the exported file failed: its process was ended by SIGKILL"):
        measured.compare(path)
    with pytest.raises(UserError, match="The measurement of the trained model failed: its process was"):
        proof.measure_trained(measured.trained, tmp_path, quiet, 1, plain_base=True, as_file=True)
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_without_the_reader_nothing_is_claimed(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = measured.gguf(tmp_path / "model.gguf")
    monkeypatch.setattr("core.export.llama_cpp.LIBRARY", "no_such_package")
    with pytest.raises(NotVerifiedError, match="is not verified") as refused:
        measured.compare(path)
    assert "pip install 'localtune-tui[export]'" in refused.value.hint
    refuse_unreadable("merged")


def test_an_adapter_is_read_by_plain_peft(measured: Measured, tmp_path: Path) -> None:
    assert measured.trained.adapter is not None
    copy = shutil.copytree(measured.trained.adapter, tmp_path / "adapter")
    found = proof.compare_export(copy, "adapter", None, measured.trained, measured.directory, quiet)
    assert found.failures(None) == []
    assert found.reader.startswith("PEFT ")


def test_a_model_trained_on_4_bits_is_judged_by_what_it_was_merged_with(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl", 4), method="qlora")
    path = write_tiny_gguf(tmp_path / "model.gguf", *merged_model(tiny_model_dir, run.adapter_path))
    told: list[str] = []
    trained, answers = find_trained(run), tmp_path / "answers"
    answers.mkdir()
    proof.measure_trained(
        trained, answers, lambda activity, *_: told.append(activity), 3, plain_base=True, as_file=True
    )
    found = proof.compare_export(path, "gguf", "F32", trained, answers, quiet, way="base")
    assert (found.rows, found.data) == (3, "training")
    assert found.failures("F32") == []
    assert found.plain is not None
    assert found.max_delta is not None
    assert found.plain.max_delta < 0.01 < found.max_delta, "the base's rounding is told, and is not the file's fault"
    assert {"measuring the trained model", "measuring the base"} <= set(told)
    assert replace(found, plain=None).judged is None
