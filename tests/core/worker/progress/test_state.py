"""The training state in a checkpoint's manifest."""

from __future__ import annotations

import json
import math

from tests.core.worker.steps.stepper import make_state


def test_a_checkpoint_keeps_the_keys_that_earlier_versions_wrote() -> None:
    assert list(make_state().facts()) == [
        "scaler",
        "total_steps",
        "token_budget",
        "reference_budget",
        "gradient_checkpointing",
        "activation_offload",
        "liger",
        "overrides",
        "selection",
        "health",
        # Later versions add theirs behind.
        "deterministic",
        "kept_layers",
        "file",
    ]


def test_a_restored_state_goes_on_as_the_one_that_was_written() -> None:
    state = make_state(64)
    state.step, state.checkpointing, state.offloading, state.token_budget = 7, True, True, 32
    state.best.measured(7, 0.5)
    state.finite.accepts(7, math.nan, 1.0, [])
    manifest = json.loads(json.dumps({"step": state.step, **state.facts()}))
    state.best.saved(7)
    other = make_state(64)
    other.overrides = {"eval.every_steps": 3}
    other.restore(manifest)
    assert other.facts() == {**state.facts(), "overrides": {"eval.every_steps": 3}}, "what was set stays in force"
    assert (other.step, other.saved) == (7, 7)


def test_a_checkpoint_of_an_earlier_version_moves_no_activations() -> None:
    state = make_state()
    manifest = {"step": 2, **state.facts()}
    del manifest["activation_offload"]
    state.offloading = True
    state.restore(manifest)
    assert not state.offloading


def test_a_run_that_begins_again_keeps_what_memory_has_asked_for() -> None:
    state = make_state(64)
    beginning = state.facts()
    state.step, state.saved, state.token_budget, state.checkpointing = 5, 4, 16, True
    state.best.measured(5, 0.5)
    state.restart(beginning)
    assert [state.step, state.saved, state.best.best_step] == [0, None, None]
    assert (state.token_budget, state.checkpointing) == (16, True)
