"""Running out of memory anywhere does not end a run: torch's own error, raised inside torch's functions in a worker.

The code under test knows nothing of it: a ``sitecustomize`` on the worker's path wraps functions of torch when the
recipe is imported.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.runs.record.events import CheckpointEvent, EvalEvent, NoticeEvent
from core.runs.record.history import read_history
from core.runs.record.store import Run
from core.worker.checkpoint.checkpoint import verify_checkpoint
from tests.families.tiny import write_family

from .workers import Workers, ending, failure, finish, hooked, import_hook, notice_codes, only, steps

#: OOM_PLAN maps a kind of call to the calls, from 1, that fail, or a pass to the size that is too large for it. By the
#: time that the recipe is imported, the worker has prepared its environment.
INJECTOR = import_hook(
    "OOM_PLAN",
    "core.worker.train",
    """
    import json, torch
    plan = json.loads(os.environ["OOM_PLAN"])
    calls = {}
    def due(kind):
        calls[kind] = calls.get(kind, 0) + 1
        return calls[kind] in plan.get(kind, [])
    def run_out(kind):
        raise torch.OutOfMemoryError(f"CUDA out of memory. Injected in {kind}.")
    def wrap(owner, name, kind, after=False):
        real = getattr(owner, name)
        def wrapped(*args, **kwargs):
            fails = due(kind)
            if fails and not after:
                run_out(kind)
            result = real(*args, **kwargs)
            if fails:
                run_out(kind)
            return result
        setattr(owner, name, wrapped)
    wrap(torch.Tensor, "backward", "backward", after=True)
    wrap(torch, "_fused_adamw_", "optimizer")
    wrap(torch.nn.utils, "clip_grad_norm_", "clipping")
    wrap(torch, "save", "saving")
    wrap(torch.Tensor, "cpu", "copying")
    norm = torch.linalg.vector_norm
    def limited_norm(values, *args, **kwargs):
        # That of a tensor that is updated inside backward; the norms of rows have a dimension.
        if "dim" not in kwargs and due("hook"):
            run_out("hook")
        return norm(values, *args, **kwargs)
    torch.linalg.vector_norm = limited_norm
    attention = torch.nn.functional.scaled_dot_product_attention
    def limited(query, *args, **kwargs):
        kind = "forward" if torch.is_grad_enabled() else "evaluation"
        rows, tokens = plan.get(kind + "_limit", [1 << 30, 1 << 30])
        if query.shape[0] > rows or query.shape[-2] > tokens or due(kind):
            run_out(kind)
        return attention(query, *args, **kwargs)
    torch.nn.functional.scaled_dot_product_attention = limited
    # The engine's own attention of short rows, which is taken with gradients alone here: scores are made by it.
    scores = torch.baddbmm
    def limited_scores(mask, queries, keys, **kwargs):
        if keys.shape[-1] > plan.get("forward_limit", [1 << 30, 1 << 30])[1] or due("forward"):
            run_out("forward")
        return scores(mask, queries, keys, **kwargs)
    torch.baddbmm = limited_scores
    """,
)
#: Exact arithmetic and no dropout, so that nothing but the way the rows are cut can make a difference.
SECTIONS: dict[str, dict[str, Any]] = {
    "method": {"name": "lora", "dropout": 0.0},
    "train": {"max_steps": 8, "precision": "fp32", "learning_rate": 1e-4},
    "eval": {"every_steps": 4},
    "checkpoint": {"every_steps": 2, "keep": 9},
}


def start(workers: Workers, plan: dict[str, Any], **changes: dict[str, Any]) -> Run:
    variables = hooked(workers.directory / "hooks", INJECTOR, OOM_PLAN=json.dumps(plan))
    sections = {name: SECTIONS.get(name, {}) | changes.get(name, {}) for name in {**SECTIONS, **changes}}
    return workers.start("tight", variables, **sections)


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter_path / "adapter_model.safetensors")


def notices(run: Run, code: str) -> list[NoticeEvent]:
    return [notice for notice in only(NoticeEvent, run) if notice.code == code]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """The run that never meets it."""
    with contextlib.closing(Workers(tmp_path_factory.mktemp("calm"), tiny_model_dir)) as workers:
        run = start(workers, {})
        finish(run)
    return run


def assert_same(run: Run, calm: Run) -> None:
    """Rows, order, schedule and outcome match the undisturbed run."""
    assert [(step.step, step.tokens, step.supervised_tokens, step.lr) for step in steps(run)] == [
        (step.step, step.tokens, step.supervised_tokens, step.lr) for step in steps(calm)
    ]
    assert [step.loss for step in steps(run)] == pytest.approx([step.loss for step in steps(calm)], abs=1e-5)
    expected, found = adapter(calm), adapter(run)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)
    evaluations, wanted = only(EvalEvent, run), only(EvalEvent, calm)
    assert [event.step for event in evaluations] == [event.step for event in wanted]
    assert [event.loss for event in evaluations] == pytest.approx([event.loss for event in wanted], abs=1e-5)
    assert [event.exact_match for event in evaluations] == [event.exact_match for event in wanted]


def test_a_run_that_meets_it_everywhere_is_the_run_that_never_did(workers: Workers, calm: Run) -> None:
    plan = {
        "forward": [10],
        "backward": [9],
        "clipping": [3],
        "optimizer": [1, 4, 5],
        "evaluation_limit": [1, 1 << 30],
        "saving": [1],
        "copying": [1],
    }
    run = start(workers, plan)
    finish(run)
    assert_same(run, calm)
    codes = notice_codes(run)
    assert codes.count("memory_cut") == 2
    cut = notices(run, "memory_cut")[0]
    assert "micro-batches of 4 rows are cut to" in cut.message
    again = [notice.message for notice in notices(run, "memory_again")]
    assert sum("in the optimizer's step" in message for message in again) == 3
    assert "Memory ran out at step 1 in the optimizer's step" in again[0]
    assert any("step 3 in clipping" in message for message in again)
    assert any("held-out rows at once" in notice.message for notice in notices(run, "memory_evaluation"))
    assert any("prompts at once" in notice.message for notice in notices(run, "memory_answers"))
    assert [event.step for event in only(CheckpointEvent, run)] == [2, 4, 6, 8]
    assert not set(codes) & {"evaluation_skipped", "checkpoint_failed", "checkpoint_postponed"}


@pytest.mark.long
def test_a_mixture_in_4_bits_is_the_run_that_never_met_it(workers: Workers, tmp_path: Path) -> None:
    """Rows are cut, so that experts get other groups of tokens; steps and a checkpoint are done again."""
    workers.model = write_family("qwen3_moe", tmp_path / "mixture")
    method = {"name": "qlora", "target_experts": "on"}
    undisturbed = start(workers, {}, method=method)
    finish(undisturbed)
    plan = {"forward": [10], "backward": [9], "optimizer": [1, 4], "evaluation_limit": [1, 1 << 30], "saving": [1]}
    run = start(workers, plan, method=method)
    finish(run)
    assert_same(run, undisturbed)
    assert any(".experts." in name for name in adapter(run))
    codes = notice_codes(run)
    assert {"memory_cut", "memory_again", "memory_evaluation"} <= set(codes)
    assert not set(codes) & {"evaluation_skipped", "checkpoint_failed", "checkpoint_postponed"}


def test_what_does_not_fit_at_all_is_left_out_and_the_run_goes_on(workers: Workers, calm: Run) -> None:
    """All evaluations except the short check of the head, the first checkpoint, and one answer run out of memory."""
    run = start(workers, {"evaluation_limit": [1 << 30, 16], "saving": [1, 2, 3]})
    finish(run)
    assert [event.step for event in only(EvalEvent, run)] == []
    skipped = notices(run, "evaluation_skipped")
    assert [notice.message.split(".")[0] for notice in skipped] == [
        "The evaluation after step 4 is left out",
        "The evaluation after step 8 is left out",
    ]
    assert f"{workers.eval_data.name} line " in skipped[0].message
    # Common beginnings are not shared, as trying it did not fit: the same but for rounding.
    torch.testing.assert_close(adapter(run), adapter(calm), atol=1e-6, rtol=0)
    (postponed,) = notices(run, "checkpoint_postponed")
    assert "the checkpoint of step 2" in postponed.message
    # Tried again after the next step, and then as before.
    assert [event.step for event in only(CheckpointEvent, run)] == [3, 4, 6, 8]
    assert verify_checkpoint(run.checkpoints_path / "step-00000003").step == 3


def test_a_row_that_does_not_fit_alone_ends_the_run_and_is_named(workers: Workers) -> None:
    run = start(workers, {"forward_limit": [1 << 30, 24]})
    end = failure(run)
    assert "memory_checkpointing" in notice_codes(run)
    assert "with a single row of" in end.reason
    assert f"({workers.train_data.name} line " in end.reason
    assert "train.max_length" in end.hint
    assert steps(run) == []


#: Whole models, updated inside backward; stochastic rounding, and a choice of the best step at the end.
WHOLE: dict[str, dict[str, Any]] = {
    "method": {"name": "full"},
    "train": {"precision": "bf16", "optimizer": "adamw_8bit", "learning_rate": 1e-3},
    "eval": {"every_steps": 4, "exact_match": False, "patience": 9, "baseline": True},
    "checkpoint": {"every_steps": 4, "final": "best"},
}


def start_whole(workers: Workers, checkpointing: str, *places: tuple[int, int]) -> Run:
    """A run that trains a whole model, and runs out of memory within backward.

    Args:
        workers: Starts it.
        checkpointing: ``on`` or ``off``.
        places: Steps, and how many tensors are updated before it happens in them; steps that are done again count on.
    """
    tensors = len(load_file(workers.model / "model.safetensors"))
    calls = [(step - 1) * tensors + updated + 1 for step, updated in places]
    return start(workers, {"hook": calls}, **WHOLE, memory={"gradient_checkpointing": checkpointing})


@pytest.fixture(scope="module")
def recomputing(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    """The whole model that never meets it, with activations recomputed throughout."""
    with contextlib.closing(Workers(tmp_path_factory.mktemp("recomputing"), tiny_model_dir)) as workers:
        run = start_whole(workers, "on")
        finish(run)
    return run


@pytest.mark.parametrize(
    ("torn", "back_to", "done"),
    [
        pytest.param(3, "the untouched base", [1, 2, *range(1, 9)], id="before a checkpoint", marks=pytest.mark.long),
        pytest.param(7, "step-00000004", [*range(1, 7), *range(5, 9)], id="after a checkpoint"),
    ],
)
def test_weights_that_were_updated_in_part_are_put_back_and_the_run_goes_on(
    workers: Workers, recomputing: Run, torn: int, back_to: str, done: list[int]
) -> None:
    run = start_whole(workers, "off", (torn, 6))
    finish(run)
    (notice,) = notices(run, "memory_replay")
    assert notice.message.startswith(f"Memory ran out at step {torn}, when a part of the weights")
    assert back_to in notice.message
    assert [step.step for step in steps(run)] == done
    weights = "model.safetensors"
    assert (run.model_path / weights).read_bytes() == (recomputing.model_path / weights).read_bytes()
    history, expected = read_history(run), read_history(recomputing)
    for found, wanted in ((history.loss, expected.loss), (history.learning_rate, expected.learning_rate)):
        assert (list(found.steps), list(found.values)) == (list(wanted.steps), list(wanted.values))
    assert [(event.step, event.loss) for event in history.evals] == [
        (event.step, event.loss) for event in expected.evals
    ]
    assert [event.step for event in history.checkpoints] == [event.step for event in expected.checkpoints]
    assert history.tokens == expected.tokens
    assert ending(run).best == ending(recomputing).best
    assert last_facts(run) == last_facts(recomputing)


def last_facts(run: Run) -> dict[str, Any]:
    """Facts and file hashes of the last checkpoint, without paths; only torch's random generator is seeded."""
    checkpoint = verify_checkpoint(run.checkpoints_path / "step-00000008")
    left_out = ("manifest_sha256", "config", "config_sha256")
    facts = {name: value for name, value in checkpoint.manifest.items() if name not in left_out}
    files = {name: value for name, value in facts["files"].items() if name != "rng.pt"}
    dice = torch.load(checkpoint.path / "rng.pt", weights_only=True)["torch"]
    return facts | {"files": files, "dice": dice.tolist()}


def test_a_second_time_the_run_ends_and_says_what_would_help(workers: Workers) -> None:
    run = start_whole(workers, "off", (1, 3), (1, 9))
    end = failure(run)
    assert len(notices(run, "memory_replay")) == 1
    assert end.reason == "Memory ran out at step 1, when a part of the weights had been updated already."
    assert "train.batch_size" in end.hint
    assert steps(run) == []
