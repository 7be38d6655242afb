"""``curve``: runs on shares of the rows, trained here or queued."""

from __future__ import annotations

from core.queue import store
from core.runs.record.store import list_runs
from tests.cases import cases

from .conftest import CommandLine

HELD_OUT = {"eval": '"data.jsonl"'}


def test_each_share_is_trained_and_the_curve_is_printed(cli: CommandLine) -> None:
    cli.script(steps=2, demo=True)
    config = str(cli.config(**HELD_OUT))
    result = cli.ok("curve", config, "--shares", "0.5,1", "--json")
    found = result.json
    assert [point["rows"] for point in found["learning_curve"]["points"]] == [1, 2]
    assert found["learning_curve"]["outlook"] is None
    assert "1 of 2: weights [0.5], run" in result.err
    weights = {run.id: run.config().data.weights for run in list_runs()}
    assert [weights[run] for run in found["runs"]] == [[0.5], [1.0]]
    told = cli.ok("compare", *found["runs"])
    assert "learning curve\n        1 rows  loss" in told.out


def test_a_run_that_fails_ends_the_curve(cli: CommandLine) -> None:
    cli.script(steps=2, end="failed")
    result = cli("curve", str(cli.config(**HELD_OUT)), "--shares", "0.5,1")
    assert (result.code, result.out, len(list_runs())) == (1, "", 1)


def test_the_runs_are_queued_with_every_seed(cli: CommandLine) -> None:
    config = str(cli.config(**HELD_OUT))
    added = cli.ok("curve", config, "--seeds", "2", "--by", "area", "--queue", "--yes", "--json").json
    assert (added["sweep"], added["entries"]) == ("s1", [1, 2, 3, 4, 5, 6])
    configs = [store.read_entry_config(entry) for entry in store.read_queue().of_sweep("s1")]
    assert [(one.data.weights, one.train.seed) for one in configs][:3] == [([0.25], 42), ([0.25], 43), ([0.5], 42)]
    assert {one.eval.samples for one in configs} == {100}
    assert cli.ok("queue", "results", "s1", "--json").json["learning_curve"] is None


def test_shares_of_a_sweep_are_of_the_weights_that_are_set(cli: CommandLine) -> None:
    config = str(cli.config())
    cli.ok("queue", "sweep", config, "--set", "data.weights=[0.5]", "--over", "share=0.5,1", "--yes")
    swept = [store.read_entry_config(entry).data.weights for entry in store.read_queue().of_sweep("s1")]
    assert swept == [[0.25], [0.5]]


@cases(
    ("more", "said"),
    [
        ([], "There are no held-out rows"),
        (["--set", "data.eval_share=0.3", "--seeds", "2"], "holds other rows out for each seed"),
        (["--set", "data.eval_share=0.3", "--set", "train.max_steps=5"], "gives all shares the same steps"),
    ],
)
def test_runs_that_would_not_compare_are_refused(cli: CommandLine, more: list[str], said: str) -> None:
    cli.refused(said, "curve", str(cli.config()), *more)
