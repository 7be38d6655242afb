"""Replay of a span of a run in a private copy: built as the run was, from the checkpoint at its start.

A span trained by several processes is replayed by as many, of which the first one follows the record.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from core import paths
from core.atomic import write_atomic
from core.audit.result import Difference, Outcome, SpanResult
from core.audit.spans import Span
from core.config.document import dump_config
from core.config.live import TRAINING
from core.config.schema import Config, DistributedSection, NightSection
from core.directories import disk_error, whole_directory
from core.errors import UserError
from core.runs.record.state import EventTail
from core.runs.record.store import EVENTS_NAME, Run, refuse_live
from core.worker.audit.compare import Recorded, compare_checkpoints
from core.worker.audit.inputs import part_of
from core.worker.audit.script import ReplayEnded, Script, ShortOfMemory
from core.worker.checkpoint.checkpoint import Checkpoint, checkpoint_name, verify_checkpoint, write_manifest
from core.worker.checkpoint.checkpointer import config_hash
from core.worker.distributed.ranks import Ranks, lost_ranks_told
from core.worker.follower import carry_out_orders
from core.worker.model.support import resolve_base
from core.worker.process.control import Controls
from core.worker.process.determinism import nondeterminism_explained
from core.worker.process.recorder import Recorder
from core.worker.progress.state import Limits
from core.worker.setup.build import Parts, build
from core.worker.setup.provenance import changed_rows, machine, software
from core.worker.setup.strategy import needs_turns
from core.worker.train import FinetuneRecipe

#: Changed rows listed in a message.
_NAMED_ROWS = 5
#: Governed options that a replay ignores. It obeys temperature limits: they protect the machine, and cost only time.
_DROPPED_LIMITS = ("power_limit_w", "host_memory_limit_percent", "disk_free_min_gb")
#: Timeout in seconds between processes: fewer cores may do the work of several machines.
PATIENCE = 3600.0


@dataclass(frozen=True)
class Replay:
    """The replay of a span, and its comparison with the record.

    Args:
        run: The run.
        config: The configuration of its start.
        span: The interval.
        work: An empty directory for the copy.
        manifests: Manifests by step, as recorded.
        start: The facts in the chain of the start that the span belongs to; empty where there are none.
        progress: Called with the stage, the amount done and the total.
        ranks: The processes of the replay; they have met.
        keeps: Whether the run gets the checkpoint at the end of the span if all of it is equal.
    """

    run: Run
    config: Config
    span: Span
    work: Path
    manifests: Mapping[int, Mapping[str, Any]]
    start: Mapping[str, Any]
    progress: Callable[[str, int | None, int | None], None]
    ranks: Ranks = field(default_factory=Ranks.single)
    keeps: bool = False
    _changed: list[str] = field(default_factory=list)

    def execute(self) -> SpanResult:
        """Replay the span, in the first process; it returns a result even if the replay fails.

        Raises:
            ChangedRowsError: If the rows differ from the run's.
            RankLostError: If another process does not answer.
        """
        began = time.monotonic()
        try:
            result = self._execute()
        except UserError as error:
            result = SpanResult(begin=self.span.begin, end=self.span.end, outcome="skipped", reason=str(error))
        return dataclasses.replace(result, seconds=round(time.monotonic() - began, 3))

    def follow(self) -> None:
        """Do this process's part of the span, in any process but the first, which ends at the end of the record; the
        parent then ends the others.

        Raises:
            RankLostError: If another process does not answer.
            UserError: If it cannot go on.
        """
        self.ranks.meet()
        with nondeterminism_explained(), lost_ranks_told():
            carry_out_orders(self._make_recipe(Recorder(self._copy, keeps=False), Controls()))

    @cached_property
    def _copy(self) -> Run:
        return Run(self.work / dated_name(self.run))

    def _execute(self) -> SpanResult:
        copy = self._copy
        copy.checkpoints_path.mkdir(mode=paths.DIRECTORY_MODE, parents=True)
        write_atomic(copy.config_path, dump_config(self.config))
        if self.span.begin:
            name = checkpoint_name(self.span.begin)
            shutil.copytree(self.run.checkpoints_path / name, copy.checkpoints_path / name)
        self.ranks.meet()
        controls = Controls()
        script = Script(self.span, controls, self._compare, self._tell_step)
        with suppress(ReplayEnded), nondeterminism_explained(), lost_ranks_told():
            recipe = self._make_recipe(Recorder(copy, heard=script.heard), controls)
            objective = ShortOfMemory(recipe.parts.objective, script)
            recipe = dataclasses.replace(recipe, parts=dataclasses.replace(recipe.parts, objective=objective))
            script.give()
            recipe.run()
        result = self._judge(script)
        if self.keeps and result.outcome == "equal":
            self._keep()
        return result

    def _keep(self) -> None:
        """Give the run the checkpoint at the end of the span.

        Raises:
            UserError: If it cannot be written, or the run goes on.
        """
        found = verify_checkpoint(self._copy.checkpoints_path / checkpoint_name(self.span.end))
        recorded, target = self.manifests.get(self.span.end, {}), self.run.checkpoints_path / found.path.name
        # The run's own manifest has its times and energy, and is in the chain.
        manifest = recorded if recorded.get("files") == found.manifest["files"] else found.manifest
        refuse_live(self.run, "it gets no checkpoint of a replay while it goes on")
        try:
            with whole_directory(target) as directory:
                for name in found.manifest["files"]:
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(found.path / name, directory / name)
                write_manifest(manifest, directory)
        except OSError as error:
            raise disk_error(target, error) from error

    def _make_recipe(self, recorder: Recorder, controls: Controls) -> FinetuneRecipe:
        """Build the recipe at the start of the span; all processes together."""
        config = self._config
        name = checkpoint_name(self.span.begin)
        found = verify_checkpoint(self._copy.checkpoints_path / name) if self.span.begin else None
        self._check_room(config)
        self.progress("loading rows and model", None, None)
        parts = build(config, recorder, controls, found, self.ranks)
        if self.ranks.is_first:
            self._check_rows(parts)
            self._check_options()
        self.ranks.meet()
        self._begin(parts, found)
        return FinetuneRecipe(config, recorder, controls, parts)

    @property
    def _config(self) -> Config:
        """The configuration without options that only decide when a run rests, waits or ends; for several processes
        with their start's decisions."""
        hardware: dict[str, Any] = dict.fromkeys(_DROPPED_LIMITS)
        distributed: dict[str, Any] = {"timeout": PATIENCE}
        if self.span.team.is_several:
            hardware["device"] = "cpu"
            distributed["strategy"] = self.span.team.strategy
        return self.config.model_copy(
            update={
                "hardware": self.config.hardware.model_copy(update=hardware),
                "distributed": self._distributed.model_copy(update=distributed),
                "night": NightSection(),
            }
        )

    @property
    def _distributed(self) -> DistributedSection:
        """The options for several processes at the span's start: a run may continue with others."""
        config = self.start.get("config")
        if not isinstance(config, dict):
            return self.config.distributed
        try:
            return DistributedSection.model_validate(config.get("distributed", {}))
        except ValueError:
            return self.config.distributed

    def _check_room(self, config: Config) -> None:
        """Reject a replay that needs the models of several machines where this one has no room for them.

        Raises:
            UserError: If so.
        """
        team = self.span.team
        if team.machines > 1 and needs_turns(config, resolve_base(config.model.base, self.progress), self.ranks):
            raise UserError(
                f"The run was computed by {team.count} processes on {team.machines} machines, and this one has no room "
                "for as many models.",
                "Verify it on a machine with more memory.",
            )

    def _check_rows(self, parts: Parts) -> None:
        """Reject changed rows, by their names.

        Raises:
            ChangedRowsError: If so.
        """
        prints = parts.checkpointer.fingerprints
        recorded = self._next_manifest
        rows = part_of(self.start, "rows")
        if {recorded.get("data_sha256"), rows.get("sha256", prints.data)} != {prints.data}:
            raise ChangedRowsError(_name_rows(parts, str(rows.get("digits", "")), rows.get("count")))
        if recorded.get("held_out_sha256", prints.held_out) != prints.held_out:
            raise ChangedRowsError("The held-out rows are not those that the run was measured on.")

    def _check_options(self) -> None:
        """Refuse options other than the run's for a checkpoint that the run will have: where none was recorded, steps
        with equal losses may still end in another update.

        Raises:
            UserError: If so.
        """
        if self.keeps and self._next_manifest.get("config_sha256") != config_hash(self.config):
            raise UserError("Options of the run have changed since it was trained.")

    def _begin(self, parts: Parts, found: Checkpoint | None) -> None:
        """Set the state to the start of the span."""
        state = parts.state
        if found is not None:
            parts.checkpointer.resume(found)
        else:
            self._decide_as_before(parts)
        state.overrides = {name: value for name, value in state.overrides.items() if name in TRAINING}
        state.overrides |= self.span.changes
        state.spikes.left_out.update(self.span.left_out)
        state.spikes.rollbacks = max(state.spikes.rollbacks, self.span.rollbacks)
        # A slower replay must not end earlier.
        state.limits = Limits()
        if self.span.rolled_back:
            parts.checkpointer.checkpointing.enable()
        self.ranks.meet()
        parts.checkpointer.spread()
        if parts.file is not None:
            parts.file.follow()
        self._note_machine(parts)

    def _decide_as_before(self, parts: Parts) -> None:
        """Restore decisions that depended on the free memory, instead of deciding anew."""
        facts = part_of(self.start, "facts") or self._next_manifest
        state = parts.state
        if not self.start and any(event.type == "notice" for event in self.span.script):
            return  # the settings before memory ran out are unknown
        state.token_budget = _count(facts.get("token_budget"), state.token_budget)
        state.checkpointing = bool(facts.get("gradient_checkpointing", state.checkpointing))
        state.kept_layers = _count(facts.get("kept_layers"), 0)
        state.offloading = bool(facts.get("activation_offload", False))
        parts.checkpointer.checkpointing.apply()

    def _note_machine(self, parts: Parts) -> None:
        now = machine(parts.loaded.device)
        for what, recorded, present in (
            ("machine", self.start.get("machine"), now),
            ("software", self.start.get("software"), software()),
        ):
            if not isinstance(recorded, dict):
                self._changed.append(f"the {what} of the run was not recorded")
                continue
            for name in sorted({*recorded, *present}):
                if recorded.get(name) != present.get(name):
                    before, here = recorded.get(name) or "none", present.get(name) or "none"
                    self._changed.append(f"{name} changed from {before} to {here}")
        if (machines := self.span.team.machines) > 1:
            self._changed.append(
                f"the run was computed on {machines} machines, of which only the first one is recorded"
            )

    @cached_property
    def _next_manifest(self) -> Mapping[str, Any]:
        """The first recorded manifest from the end of the span on: a checkpoint that the run did not write has none."""
        return self.manifests[min(step for step in self.manifests if step >= self.span.end)]

    def _compare(self, step: int) -> list[Difference]:
        if step not in self.manifests:
            return []
        again = verify_checkpoint(self._copy.checkpoints_path / checkpoint_name(step))
        path = self.run.checkpoints_path / checkpoint_name(step)
        return compare_checkpoints(Recorded(step, self.manifests[step], path, is_unseeded=not self.start), again)

    def _tell_step(self, step: int) -> None:
        if step <= self.span.end:
            self.progress(f"step {step}", step - self.span.begin, self.span.end - self.span.begin)

    def _judge(self, script: Script) -> SpanResult:
        differences = tuple(script.differences)
        outcome: Outcome = "differs" if differences else "equal"
        reason = ""
        if script.is_astray and not differences:
            outcome, reason = "skipped", script.is_astray
        # Equal weights and states show that the machine computes the same bits, so other differences are changes.
        elif self._changed and any(difference.file != EVENTS_NAME for difference in differences):
            outcome, reason = "inexact", f"Equal bits are not to be expected here: {'; '.join(self._changed)}."
        return SpanResult(
            begin=self.span.begin, end=self.span.end, outcome=outcome, reason=reason, differences=differences
        )


def dated_name(run: Run) -> str:
    """A name for a run's copy that starts with its date, which templates may write: the run's own, or the time of its
    first event if it was renamed."""
    if run.created is not None:
        return run.id
    first = next((event for events in EventTail(run.events_path).batches() for event in events), None)
    return f"{datetime.fromtimestamp(first.t if first is not None else 0):%Y%m%d-%H%M%S}-renamed"


def _count(value: Any, otherwise: int) -> int:
    return value if type(value) is int and value >= 0 else otherwise


class ChangedRowsError(Exception):
    """The rows differ from the run's; the message names them."""


def _name_rows(parts: Parts, digits: str, count: Any) -> str:
    """The message about changed rows."""
    dataset = parts.dataset
    if not digits:
        return "The training rows are not those of the run; which of them is not recorded."
    if count != len(dataset.rows):
        return f"The run was trained on {count} rows, and there are {len(dataset.rows)} now."
    changed = changed_rows(dataset, digits)
    if not changed:
        return "The training rows are not those of the run."
    named = ", ".join(dataset.place(row) for row in changed[:_NAMED_ROWS])
    more = f" and {len(changed) - _NAMED_ROWS} more" if len(changed) > _NAMED_ROWS else ""
    was = "A row was changed since the run learned it" if len(changed) == 1 else "Rows were changed since the run"
    return f"{was}: {named}{more}."
