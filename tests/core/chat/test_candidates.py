from __future__ import annotations

import shutil
from dataclasses import replace

from core.chat.candidates import find_candidates
from core.config.schema import MethodSection
from core.runs.record.events import BEST_CHOSEN, EvalEvent, FinishedEvent, encode_event
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run
from tests.core.chat.test_session import add_adapter, add_checkpoint, make_run


def evaluated(run: Run, **losses: float) -> None:
    events = [EvalEvent(step=int(step[1:]), loss=loss, perplexity=1.0, seconds=1.0) for step, loss in losses.items()]
    run.events_path.write_text("".join(encode_event(event) for event in events))


def test_the_run_its_checkpoints_with_their_loss_and_others_on_the_base() -> None:
    run, other = make_run("finished"), make_run("stopped")
    for step in (20, 40):
        add_checkpoint(run, step)
    evaluated(run, s20=0.5, s40=0.4321)
    add_adapter(other.adapter_path)
    evaluated(other, s10=0.75)
    for stranger in (
        make_run("finished", method=MethodSection(name="full")),
        make_run("finished", method=MethodSection(name="lora")),
        make_run("finished", base="/models/another"),
    ):
        add_adapter(stranger.adapter_path)
    found = [(each.source, each.name, each.about) for each in find_candidates(run)]
    assert found == [
        ("tuned", "tuned", "newest checkpoint, step 40"),
        ("base", "base", "the model before training"),
        (f"{run.id}@40", "step 40", "held-out loss 0.432"),
        (f"{run.id}@20", "step 20", "held-out loss 0.500"),
        (other.id, brief_id(other.id), "result, held-out loss 0.750"),
    ]


def test_the_judged_checkpoint_answers_in_the_place_of_a_refused_result() -> None:
    run, refused = make_run("finished"), "loss is 2 and should be <= 1"
    replace(run.state(), refused=refused).write(run.state_path)
    for step in (20, 40):
        add_checkpoint(run, step)
        assert find_candidates(run)[0].about == f"newest checkpoint, step {step} (result refused by eval.gate)"
    reason = f"all steps done; the result is that of step 20, {BEST_CHOSEN}"
    run.events_path.write_text(encode_event(FinishedEvent(step=40, best=20, reason=reason, refused=refused)))
    assert find_candidates(run)[0].about == "checkpoint, step 20 (result refused by eval.gate)"
    shutil.rmtree(run.checkpoints_path / "step-00000020")
    assert find_candidates(run)[0].about == "its checkpoint is gone (result refused by eval.gate)"


def test_a_result_is_reported_with_the_loss_of_its_own_step() -> None:
    run, other = make_run("finished"), make_run("finished")
    add_adapter(other.adapter_path)
    evaluated(other, s20=0.5, s40=0.75)
    reason = f"all steps done; adapter is that of step 20, {BEST_CHOSEN}"
    with other.events_path.open("a") as file:
        file.write(encode_event(FinishedEvent(step=40, best=20, reason=reason, adapter="adapter")))
    assert (other.id, "result, held-out loss 0.500") in [(each.source, each.about) for each in find_candidates(run)]


def test_a_run_that_trains_weights_shares_no_base() -> None:
    run = make_run("finished", method=MethodSection(name="full"))
    assert [each.source for each in find_candidates(run)] == ["tuned"]
