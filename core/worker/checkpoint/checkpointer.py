"""Checkpoints of a run and its final adapter or model: written, found again, put back."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.config.live import CHANGEABLE, changed_options
from core.config.schema import WEIGHT_METHODS, Config
from core.directories import require_space, whole_directory
from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.notify import Notice, notify
from core.paths import existing_parent
from core.runs.record.events import CheckpointEvent, ControlEvent
from core.runs.record.files import refuse_moved_checkpoints
from core.runs.record.sentences import KEPT, encode_changes
from core.small_files import hash_file
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.storage import check_storage, storage_facts
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.replicate import single
from core.worker.distributed.strategy import Strategy
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import LoadedModel
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import TRIES, MemoryShortageError, Retry, attempt
from core.worker.optim.update import Update
from core.worker.process.recorder import Recorder
from core.worker.progress.state import TrainState
from core.worker.steps import GradientCheckpointing

#: Sections of the configuration that a resumed run must share with its beginning.
FIXED_SECTIONS = ("model", "data", "template", "method", "train")
#: What of them it need not: a run that has stopped for a loss spike may go on with another rule.
FREE_OPTIONS = ("on_loss_spike", "loss_spike", "loss_spike_patience", "loss_limit")
#: Options that a refusal names.
_MOST_CHANGES = 3


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of what a run that goes on must find as it was."""

    data: str
    """SHA-256 over the rows trained on."""
    held_out: str
    """The same over the held-out rows; empty where there are none."""
    base: BaseFingerprint
    """Of the base model; computed on a thread."""

    @classmethod
    def of(cls, base: Path, data: str, held_out: str) -> Fingerprints:
        """Begin to hash a base model.

        Args:
            base: Its directory.
            data: Hash of the rows trained on.
            held_out: Hash of the held-out rows.
        """
        return cls(data, held_out, BaseFingerprint(base))


@dataclass
class Checkpointer:
    """Writes and restores the checkpoints of a run, and writes its result.

    Args:
        config: Of the run.
        loaded: The model that is trained.
        update: Has the optimizer's states.
        state: What a checkpoint holds besides.
        checkpointing: Follows the state that is restored.
        fingerprints: Of data and base.
        template: A chat template instead of the tokenizer's own.
        recorder: Of the run; where events and notices go.
        strategy: How processes share what is trained; the others wait while the first one saves.
    """

    config: Config
    loaded: LoadedModel
    update: Update
    state: TrainState
    checkpointing: GradientCheckpointing
    fingerprints: Fingerprints
    template: str | None
    recorder: Recorder
    strategy: Strategy = field(default_factory=single)
    postponed: bool = field(default=False, init=False)
    """True if one could not be written for want of memory, and is to be tried again."""

    @property
    def output(self) -> Path:
        """Directory of the result: the adapter, or the model where its own weights are trained."""
        return (
            self.recorder.run.model_path
            if self.config.method.name in WEIGHT_METHODS
            else self.recorder.run.adapter_path
        )

    def check_room(self) -> None:
        """Refuse when a checkpoint would not fit on the disk.

        Raises:
            UserError: If so.
        """
        size = checkpoints.size_estimate(self.loaded.model, self.config.train.optimizer)
        hint = "Make room, lower checkpoint.keep, or set LOCALTUNE_HOME to a larger disk."
        # They may be on another disk than the run.
        disk = existing_parent(self.recorder.run.checkpoints_path)
        require_space(disk, size + checkpoints.DISK_RESERVE_BYTES, "a checkpoint", hint)

    # Writing.

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one; old ones are rotated out afterwards.

        A full disk does not end the run: it is paused, to be resumed when there is room. When memory runs out, it is
        tried again, at once and after the next step.
        """
        if self.state.saved != self.state.step and self.state.step:
            with self.strategy.orders.alone():
                self._save()

    def _save(self) -> None:
        state, step = self.state, self.state.step
        began = time.monotonic()
        self.recorder.progress("checkpoint")
        try:
            refuse_moved_checkpoints(self.recorder.run)
            self.check_room()
            # Whoever goes on from a checkpoint has the events of the steps before it.
            self.recorder.sync()
            written = self._write()
        except MemoryShortageError as error:
            self.postponed = True
            self.recorder.warn(
                "checkpoint_postponed", error.message, "It is tried again after the next step, if there is one."
            )
            return
        except (OSError, UserError) as error:
            reason = error.message if isinstance(error, UserError) else str(error)
            self.recorder.notice(
                "error",
                "checkpoint_failed",
                f"The checkpoint of step {step} was not written: {reason}",
                "Make room, then resume; earlier checkpoints are untouched.",
            )
            if not state.paused:
                notify(Notice("paused", f"the checkpoint was not written: {reason}", self.recorder.run.id))
            state.paused = True
            return
        finally:
            self.recorder.end_progress()
        self.recorder.seal("checkpoint", {"step": step, "manifest": written.manifest})
        state.saved = step
        self.postponed = False
        state.best.saved(step)
        self._rotate(written.path)
        size = sum(facts["bytes"] for facts in written.manifest["files"].values())
        path = str(written.path.relative_to(self.recorder.run.path))
        self.recorder.event(CheckpointEvent(step=step, path=path, bytes=size, seconds=time.monotonic() - began))

    def _write(self) -> Checkpoint:
        step, facts = self.state.step, self.state.facts()
        same = storage_facts(self.config, self.loaded.model) | {
            "config": fixed_options(self.config),
            "config_sha256": config_hash(self.config),
            "data_sha256": self.fingerprints.data,
            "held_out_sha256": self.fingerprints.held_out,
            "base_sha256": self.fingerprints.base.value,
        }

        weights, optimizer = self._gathered()

        def write() -> Checkpoint:
            return checkpoints.save_checkpoint(
                self.recorder.run.checkpoints_path,
                model=self.loaded.model,
                optimizer=optimizer,
                step=step,
                facts=same | facts,
                weights=weights,
            )

        reason = ""
        for _ in range(TRIES):
            tried = attempt(write)
            if tried.result is not None:
                return tried.result
            reason = tried.reason or ""
        raise MemoryShortageError(f"Memory ran out in saving the checkpoint of step {step}: {reason}", "")

    def _gathered(self) -> tuple[Mapping[str, torch.Tensor] | None, Any]:
        """Trained weights and what has the optimizer's states, as in a run of one process."""
        if not self.strategy.gathers:
            return None, self.update
        self.strategy.orders.give("save")
        return self.strategy.whole_weights(trained_tensors(self.loaded.model)), _Held(self.update.state_dict())

    def lend(self, name: str) -> None:
        """In a process that is not the first: send it what it asks for.

        Args:
            name: ``save`` or ``result``.
        """
        if name == "save":
            self.strategy.whole_weights(trained_tensors(self.loaded.model))
            self.update.state_dict()
        else:
            self.strategy.whole_model(self.loaded.model)

    def drop_after(self, good: int | None) -> None:
        """Delete the checkpoints after the last good one, so that whoever goes on begins there."""
        with self.strategy.orders.alone():
            if good is not None and (path := self._path(good)).is_dir():
                refuse_moved_checkpoints(self.recorder.run)
                self._rotate(path)
                self.recorder.seal("rollback", {"step": good})

    def _path(self, step: int) -> Path:
        return self.recorder.run.checkpoints_path / checkpoints.checkpoint_name(step)

    def _rotate(self, newest: Path) -> None:
        keep, protected = self.config.checkpoint.keep, self.state.best.protected
        checkpoints.rotate(self.recorder.run.checkpoints_path, keep, newest=newest, protected=protected)

    # Going on.

    def resume(self, found: Checkpoint) -> None:
        """Put a run that goes on where it was, with what was set while it was running.

        Raises:
            UserError: If data or base have changed since, or what of the base is in 4 bits.
        """
        manifest, now = found.manifest, self.fingerprints
        for what, is_as_before in (
            ("The training data", manifest["data_sha256"] == now.data),
            # Checkpoints of earlier versions say nothing of the rows that are measured.
            ("What is held out", manifest.get("held_out_sha256", now.held_out) == now.held_out),
            (f"The base model {self.config.model.base}", now.base.matches(str(manifest["base_sha256"]))),
        ):
            if not is_as_before:
                raise UserError(f"{what} has changed since {found.path.name}.", "Put it back, or start a new run.")
        stored = check_storage(found, self.config, self.loaded.model)
        Retry(lambda: found.path.name, self.recorder.warn).run(
            lambda: self.restore(found),
            lambda: None,
            "in restoring it",
            "Close what else holds memory, and continue the run; the checkpoint is untouched.",
        )
        self.state.limits.resume(manifest.get("limits"))
        kept = {name: value for name, value in manifest["overrides"].items() if name in CHANGEABLE}
        self.state.overrides = kept
        if kept:
            # What is told before it may have been changed after the checkpoint, and holds no more.
            self.recorder.event(ControlEvent(command="set", sender=KEPT, result=encode_changes(kept)))
        self.recorder.update(step=self.state.step)
        self.recorder.notice("info", "resumed", f"Going on from {found.path.name}.", stored)

    def restore(self, found: Checkpoint) -> None:
        """Restore weights, optimizer, random state and training state from a checkpoint.

        Raises:
            UserError: If it does not fit the model.
        """
        checkpoints.restore(found, model=self.loaded.model, optimizer=self.update, read=self.strategy.read_weights)
        self.state.restore(found.manifest)
        self.checkpointing.apply()
        self.postponed = False

    def spread(self) -> None:
        """Have all processes begin with the trained tensors of the first one. Together."""
        self.strategy.begin(trained_tensors(self.loaded.model))

    # The result.

    def choose(self) -> Checkpoint | None:
        """The checkpoint that becomes the result; None for the weights as they are."""
        best = self.state.best.best_step
        if self.config.checkpoint.final == "last" or best == self.state.step:
            return None
        try:
            if best is None:
                raise UserError("No step was measured with a finite loss.")
            with self.strategy.orders.alone():
                return checkpoints.verify_checkpoint(self._path(best))
        except UserError as error:
            message = f"The best step cannot be taken: {error.message}"
            self.recorder.warn("best_missing", message, "The last one is.")
        return None

    def save_result(self, chosen: Checkpoint | None) -> None:
        """Write the adapter or the model, with its tokenizer and template.

        Args:
            chosen: The checkpoint that it is taken from; None for the weights as they are.

        Raises:
            UserError: If it cannot be written.
        """
        with self.strategy.orders.alone():
            self._save_result(chosen)

    def _save_result(self, chosen: Checkpoint | None) -> None:
        model, output = self.loaded.model, self.output
        state = self._whole_model(chosen) if output == self.recorder.run.model_path else None

        def write() -> None:
            with whole_directory(output) as directory:
                if output == self.recorder.run.model_path:
                    if chosen is not None and state is None:
                        read_tensors(chosen.weights_path, trained_tensors(model))
                    checkpoints.save_model(model, directory, state)
                elif chosen is not None:
                    shutil.copytree(chosen.adapter_path, directory, dirs_exist_ok=True)
                else:
                    checkpoints.save_adapter(model, directory)
                self.loaded.tokenizer.save_pretrained(directory)
                if self.template is not None:
                    (directory / "chat_template.jinja").write_text(self.template, encoding="utf-8")

        def nothing() -> None:
            """No undoing: what was half written is gone already."""

        saving = Retry(lambda: "the end", self.recorder.warn)
        newest = f"The newest checkpoint holds it; free memory and 'localtune-tui continue {self.recorder.run.id}'."
        try:
            saving.run(write, nothing, f"in saving the {output.name}", newest)
        except OSError as error:
            raise UserError(
                f"The {output.name} cannot be written to {output}: {error}.",
                f"The newest checkpoint holds it; make room and 'localtune-tui continue {self.recorder.run.id}'.",
            ) from error
        step = self.state.step if chosen is None else chosen.step
        try:
            found = sorted(path for path in output.rglob("*") if path.is_file())
            files = {str(path.relative_to(output)): hash_file(path) for path in found}
        except OSError as error:
            message = f"The {output.name} is not in the hash chain: {error.strerror or error}."
            self.recorder.warn("unsealed", message, "It is whole; verify compares the checkpoints alone.")
            return
        self.recorder.seal("result", {"step": step, "directory": output.name, "files": files})

    def _whole_model(self, chosen: Checkpoint | None) -> Mapping[str, torch.Tensor] | None:
        """The weights of the result, where no process has all of them."""
        if not self.strategy.is_sharded:
            return None
        self.strategy.orders.give("result")
        state = self.strategy.whole_model(self.loaded.model)
        if chosen is not None and state is not None:
            read_tensors(chosen.weights_path, {name: state[name] for name in trained_tensors(self.loaded.model)})
        return state


@dataclass(frozen=True)
class _Held:
    """An optimizer's states that have been gathered."""

    states: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """The states."""
        return self.states


def find_checkpoint(config: Config, recorder: Recorder) -> Checkpoint:
    """The checkpoint that a run goes on from; asked before minutes are spent on the rows and the model.

    Raises:
        UserError: If there is none, the configuration has changed since, or Liger's kernel summed the loss.
    """
    run, found = recorder.run, newest_checkpoint(recorder)
    if found is None:
        raise UserError(f"Run {run.id} has no valid checkpoint to go on from.", "Start it again.")
    if found.manifest["config_sha256"] != config_hash(config):
        changed = _changes(found.manifest.get("config"), fixed_options(config))
        message = f"{run.config_path} has changed since {found.path.name}{changed}."
        raise UserError(message, "Put it back, or start a new run.")
    if found.manifest.get("liger") and config.memory.liger != "off":
        raise UserError(
            f"An earlier version summed the loss of run {run.id} with Liger's kernel, which this version does not use.",
            f"Set memory.liger = off in {run.config_path} to continue; the loss may differ in its last digits.",
        )
    return found


def _changes(before: Any, now: dict[str, Any]) -> str:
    """The options that are not as they were, as the end of a sentence; empty where a checkpoint does not hold them."""
    if not isinstance(before, dict):
        return ""
    changed = list(changed_options(before, now))
    told = [str(option) for option in changed[:_MOST_CHANGES]]
    if more := len(changed) - len(told):
        told.append(f"{more} more")
    return f": {', '.join(told)}" if told else ""


def agreed_checkpoint(config: Config, recorder: Recorder, ranks: Ranks) -> Checkpoint:
    """The checkpoint that all processes of a run go on from: the one that the first of them finds.

    Raises:
        RankLostError: If another process does not answer.
        UserError: As :func:`find_checkpoint`; or if this process cannot read that checkpoint.
    """
    if ranks.is_single:
        return find_checkpoint(config, recorder)
    if ranks.is_first:
        found = find_checkpoint(config, recorder)
        ranks.meet()
        ranks.broadcast({"step": found.step})
        return found
    ranks.meet()
    step = int(ranks.broadcast()["step"])
    return checkpoints.verify_checkpoint(recorder.run.checkpoints_path / checkpoints.checkpoint_name(step))


def newest_checkpoint(recorder: Recorder) -> Checkpoint | None:
    """The newest whole checkpoint of a run, if there is one; of damaged ones notice is given."""
    found, damaged = checkpoints.newest_valid(recorder.run.checkpoints_path)
    for sentence in damaged:
        recorder.warn("checkpoint_damaged", sentence, "An older checkpoint is used.")
    return found


def config_hash(config: Config) -> str:
    """SHA-256 over the sections that decide what is trained and how."""
    return hashlib.sha256(json.dumps(fixed_options(config), sort_keys=True).encode("utf-8")).hexdigest()


def fixed_options(config: Config) -> dict[str, Any]:
    """The options that decide what is trained and how, by section."""
    # Without what has its default, so that a version with more options goes on with the runs of an earlier one.
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    fixed = {section: dumped.get(section, {}) for section in FIXED_SECTIONS}
    fixed["train"] = {name: value for name, value in fixed["train"].items() if name not in FREE_OPTIONS}
    return fixed
