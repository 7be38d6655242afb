from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

from core.worker.data.batches import MicroBatch, collate, pad
from core.worker.data.encode import TokenizedRow
from core.worker.loss.loss import SupervisedLoss
from core.worker.loss.objectives import AdapterOffReference, PrecomputedReference, make_objective
from core.worker.model.model import trainable_parameters
from core.worker.oom.retry import MemoryShortageError
from tests.cases import cases
from tests.core.worker.loss.preference_bench import Bench
from tests.core.worker.steps.stepper import FailingLoss

WINDOW = list(range(8))
OBJECTIVES: list[dict[str, Any]] = [
    {"objective": "dpo", "dpo_loss": "sigmoid"},
    {"objective": "dpo", "dpo_loss": "ipo", "beta": 0.5},
    {"objective": "dpo", "dpo_loss": "hinge", "beta": 0.3},
    {"objective": "orpo"},
    {"objective": "kto", "desirable_weight": 1.5},
]


def padded(bench: Bench, rows: list[TokenizedRow]) -> dict[str, torch.Tensor]:
    """Rows as TRL's collators give them."""
    ids, supervised = collate(rows, 0, bench.loaded.device)
    lengths = torch.tensor([len(row) for row in rows])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "completion_mask": supervised.long()}


def trainer_of_trl(
    maker: Any, settings: Any, bench: Bench, directory: Path, rows: list[dict[str, Any]], **options: Any
) -> Any:
    """TRL's trainer, comparing with the base, as it does with an adapter that it has made itself."""
    usual = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    args = settings(output_dir=str(directory), per_device_train_batch_size=4, **usual, **options)
    data, tokenizer = Dataset.from_list(rows), bench.loaded.tokenizer
    trainer = maker(bench.loaded.model, args=args, train_dataset=data, processing_class=tokenizer)
    trainer.model.delete_adapter("ref")
    trainer.model.set_adapter("default")
    return trainer


def gradients(loss: torch.Tensor, bench: Bench) -> torch.Tensor:
    bench.loaded.model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return bench.windows.gradient()


@cases(("kind", "beta"), [("sigmoid", 0.1), ("ipo", 0.1), ("hinge", 0.3)])
def test_dpo_is_that_of_trl(tiny_model_dir: Path, tmp_path: Path, kind: str, beta: float) -> None:
    bench = Bench(tiny_model_dir, objective="dpo", dpo_loss=kind, beta=beta)
    result = bench.windows.run(WINDOW)
    ours = bench.windows.gradient()
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    trainer = trainer_of_trl(DPOTrainer, DPOConfig, bench, tmp_path, pairs, loss_type=kind, beta=beta)
    theirs = trainer._compute_loss(trainer.model, padded(bench, bench.objective.sequences(WINDOW)), False)
    assert result.loss == pytest.approx(float(theirs.detach()), abs=1e-4)
    assert result.rewards.margin == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], abs=1e-4)
    assert result.rewards.accuracy == trainer._metrics["train"]["rewards/accuracies"][-1]
    torch.testing.assert_close(ours, gradients(theirs, bench), atol=1e-4, rtol=1e-3)


def test_kto_is_that_of_trl(tiny_model_dir: Path, tmp_path: Path) -> None:
    bench = Bench(tiny_model_dir, objective="kto", desirable_weight=1.5)
    bench.learn(bench.objective.reference_sequences()[len(bench.rows) :])
    result = bench.windows.run(WINDOW)
    ours = bench.windows.gradient()
    answers = [{"prompt": "a", "completion": "b", "label": number % 2 == 0} for number in range(4)]
    options = {"desirable_weight": 1.5, "train_sampling_strategy": "sequential"}
    trainer = trainer_of_trl(KTOTrainer, KTOConfig, bench, tmp_path, answers, **options)
    others = padded(bench, bench.objective.reference_sequences()[len(bench.rows) :])
    batch = padded(bench, bench.rows) | {f"KL_{name}": value for name, value in others.items()}
    batch["label"] = torch.tensor([bool(row.label) for row in bench.rows])
    theirs = trainer._compute_loss(trainer.model, batch, False)
    assert trainer._metrics["train"]["kl"][-1] > 0, "the divergence decides something here"
    assert result.loss == pytest.approx(float(theirs.detach()), abs=1e-4)
    assert result.rewards.margin == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], abs=1e-4)
    torch.testing.assert_close(ours, gradients(theirs, bench), atol=1e-4, rtol=1e-3)


def test_orpo_is_that_of_trl(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="orpo", beta=0.2)
    result = bench.windows.run(WINDOW)
    ours = bench.windows.gradient()
    batch = padded(bench, bench.objective.sequences(WINDOW))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    logits = bench.loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    means = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True)
    settings = SimpleNamespace(beta=0.2, accelerator=bench.accelerator)
    losses, better, worse, *_ = ORPOTrainer.odds_ratio_loss(settings, means[:8], means[8:])
    likelihood = torch.nn.functional.cross_entropy(logits[:8, :-1].flatten(0, 1), labels[:8, 1:].flatten())
    theirs = likelihood - losses.mean()
    assert result.loss == pytest.approx(float(theirs.detach()), abs=1e-4)
    assert result.rewards.margin == pytest.approx(float((better - worse).detach().mean()), abs=1e-5)
    torch.testing.assert_close(ours, gradients(theirs, bench), atol=1e-4, rtol=1e-3)


@cases("train", OBJECTIVES)
def test_loss_rewards_and_gradients_do_not_depend_on_the_cut(tiny_model_dir: Path, train: dict[str, Any]) -> None:
    bench = Bench(tiny_model_dir, **train)
    if train["objective"] == "kto":
        bench.learn(bench.objective.reference_sequences()[len(bench.rows) :])
    whole = bench.windows.run(WINDOW)
    wanted = bench.windows.gradient()
    for budget in (1, 150):
        bench.loaded.model.zero_grad()
        bench.windows.state.token_budget = budget
        cut = bench.windows.run(WINDOW)
        assert cut.loss == pytest.approx(whole.loss, abs=1e-6)
        assert (cut.tokens, cut.supervised_tokens) == (whole.tokens, whole.supervised_tokens)
        assert cut.rewards.margin == pytest.approx(whole.rewards.margin, abs=1e-6)
        assert cut.rewards.accuracy == whole.rewards.accuracy
        torch.testing.assert_close(bench.windows.gradient(), wanted, atol=1e-6, rtol=1e-4)


@cases("train", [{"objective": "sft"}, OBJECTIVES[1], *OBJECTIVES[3:]])
def test_facts_on_the_host_cost_no_wait(
    tiny_model_dir: Path, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where it would be a wait: loss and gradients are the same."""
    wanted = Bench(tiny_model_dir, **train)
    found = Bench(tiny_model_dir, **train)
    loss = wanted.windows.run(WINDOW).loss

    def hosted(rows: Any, sequences: Any, pad_id: int, device: Any, most_shared: int | None) -> MicroBatch:
        return MicroBatch(rows, *collate(sequences, pad_id, device), most_shared, pad(sequences, pad_id))

    monkeypatch.setattr("core.worker.train.make_micro_batch", hosted)
    assert found.windows.run(WINDOW).loss == loss
    assert torch.equal(found.windows.gradient(), wanted.windows.gradient())


@cases("train", OBJECTIVES[:1] + OBJECTIVES[3:])
def test_a_window_that_ran_out_of_memory_is_the_same(tiny_model_dir: Path, train: dict[str, Any]) -> None:
    calm, failing = Bench(tiny_model_dir, **train), Bench(tiny_model_dir, **train)
    failing.objective._loss = FailingLoss(failing.loaded.model, {3})  # type: ignore[attr-defined]
    failing.windows.state.token_budget = 200
    wanted, result = calm.windows.run(WINDOW), failing.windows.run(WINDOW)
    assert failing.windows.notices == ["memory_cut"]
    assert result.loss == pytest.approx(wanted.loss, abs=1e-6)
    assert result.rewards.accuracy == wanted.rewards.accuracy
    torch.testing.assert_close(failing.windows.gradient(), calm.windows.gradient(), atol=1e-6, rtol=1e-4)


def test_the_reference_is_the_base_model_and_leaves_the_adapters_unchanged(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="dpo", dropout=0.5)
    model = bench.loaded.model
    ids, supervised = collate(bench.rows, 0, bench.loaded.device)
    before = [(name, parameter.requires_grad) for name, parameter in model.named_parameters()]
    found = AdapterOffReference(model, bench.loss)(bench.rows, ids, supervised)
    assert model.training
    assert [(name, parameter.requires_grad) for name, parameter in model.named_parameters()] == before
    assert not found.requires_grad
    with torch.no_grad():
        model.eval()
        assert not torch.allclose(bench.loss.log_probabilities(ids, supervised), found, atol=1e-3)
        model.unload()  # the base without adapters
        torch.testing.assert_close(SupervisedLoss(model.get_base_model()).log_probabilities(ids, supervised), found)


def test_precomputed_log_probabilities_stay_unchanged(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="kto")
    measured, told = PrecomputedReference(100), list[tuple[int, int]]()
    objective = make_objective(bench.config, bench.loss, bench.rows, measured, bench.loaded, bench.accelerator.autocast)
    sequences = objective.reference_sequences()
    autocast = bench.accelerator.autocast
    measured.precompute(sequences, bench.loaded, bench.loss, autocast, lambda *done: told.append(done))
    assert told[-1] == (len(sequences), len(sequences))
    ids, supervised = collate(sequences, 0, bench.loaded.device)
    with torch.no_grad():
        wanted = bench.loss.log_probabilities(ids, supervised)
        for parameter in trainable_parameters(bench.loaded.model):
            parameter.add_(1.0)
        assert not torch.allclose(bench.loss.log_probabilities(ids, supervised), wanted, atol=1e-2)
    torch.testing.assert_close(measured(sequences, ids, supervised), wanted, atol=1e-4, rtol=1e-5)


@cases(("budget", "fail_at", "rows"), [(1000, {1, 2, 3}, 16), (160, {3}, 6)], ids=["at once", "on the way"])
def test_the_reference_is_measured_in_smaller_batches_when_memory_runs_out(
    tiny_model_dir: Path, budget: int, fail_at: set[int], rows: int
) -> None:
    bench, told = Bench(tiny_model_dir, objective="dpo"), list[str]()
    sequences = bench.objective.reference_sequences()
    loss = FailingLoss(bench.loaded.model, fail_at)

    def measure(measured: PrecomputedReference, loss: SupervisedLoss) -> torch.Tensor:
        measured.precompute(sequences, bench.loaded, loss, bench.accelerator.autocast, lambda *_: None)
        return measured(sequences, *collate(sequences, 0, bench.loaded.device))

    cut = PrecomputedReference(budget, lambda code, message, _: told.append(f"{code}: {message}"))
    found = measure(cut, loss)
    torch.testing.assert_close(found, measure(PrecomputedReference(1000), bench.loss), atol=1e-4, rtol=1e-5)
    assert told[0].startswith(f"memory_reference: Memory ran out in measuring {rows} answers by the reference at once")
    again = measure(PrecomputedReference(cut.token_budget), loss)
    assert torch.equal(again, found), "whoever takes them again has the same"
    assert bench.loaded.model.training
    loss.max_tokens = 0
    with pytest.raises(MemoryShortageError, match=r"a single answer of \d+ tokens in measuring the reference"):
        measure(cut, loss)


def test_other_answers_follow_the_prompt_and_fit(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="kto", max_length=24)
    others = bench.objective.reference_sequences()[len(bench.rows) :]
    for place, (row, other) in enumerate(zip(bench.rows, others, strict=True)):
        prompt = int(row.supervised.argmax())
        answer = bench.rows[(place + 4) % 8]
        assert len(other) <= 24
        assert other.input_ids[:prompt].tolist() == row.input_ids[:prompt].tolist()
        assert not other.supervised[:prompt].any()
        learned = other.input_ids[other.supervised]
        assert learned.tolist() == answer.input_ids[answer.supervised][: len(learned)].tolist()
        assert len(learned) == min(int(answer.supervised.sum()), 24 - prompt)


def test_a_row_left_out_lends_its_answer_to_no_other(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="kto", max_length=24)
    kinds = (bench.config, bench.loss, bench.rows, AdapterOffReference(bench.loaded.model, bench.loss), bench.loaded)
    objective = make_objective(*kinds, bench.accelerator.autocast, frozenset({4, 5}))
    before, after = (each.reference_sequences()[8:] for each in (bench.objective, objective))
    answers = [other.input_ids[other.supervised].tolist() for other in after]
    changed = [place for place in range(8) if after[place].input_ids.tolist() != before[place].input_ids.tolist()]
    assert changed == [0, 1], "those that would have had them"
    taken = bench.rows[6].input_ids[bench.rows[6].supervised].tolist()
    assert all(taken[: len(answer)] == answer for answer in answers[:2])


def test_rewards_of_one_kind_of_label_have_no_margin(tiny_model_dir: Path) -> None:
    bench = Bench(tiny_model_dir, objective="kto")
    good = [place for place, row in enumerate(bench.rows) if row.label]
    rewards = bench.windows.run(good).rewards
    assert rewards.margin is None
    assert rewards.accuracy is not None
