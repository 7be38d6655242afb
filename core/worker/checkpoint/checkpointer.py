"""Checkpoints of a run and its final adapter or model: writing, finding, restoring."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from core.config.live import CHANGEABLE, changed_options
from core.config.schema import WEIGHT_METHODS, Config
from core.directories import free_bytes, require_space, whole_directory
from core.errors import UserError
from core.models.fingerprint import BaseFingerprint
from core.notify import Notice, notify
from core.paths import existing_parent
from core.runs.catalog.trained import middle_step
from core.runs.record.events import CheckpointEvent, ControlEvent
from core.runs.record.sentences import KEPT, encode_changes
from core.runs.record.store import refuse_moved_checkpoints
from core.small_files import hash_file
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.checkpoint.storage import check_storage, storage_facts
from core.worker.distributed.ranks import Ranks
from core.worker.distributed.strategy import Strategy, single
from core.worker.model.full_weights import trained_tensors
from core.worker.model.model import LoadedModel
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import TRIES, MemoryShortageError, Retry, attempt
from core.worker.optim.update import Update
from core.worker.process.recorder import Recorder
from core.worker.progress.state import TrainState
from core.worker.steps import GradientCheckpointing

#: Sections of the configuration that a resume must not change.
FIXED_SECTIONS = ("model", "data", "template", "method", "train")
#: Options in them that may change: a run stopped by a loss spike may continue with another rule.
FREE_OPTIONS = ("on_loss_spike", "loss_spike", "loss_spike_patience", "loss_limit")
#: Maximum number of options named in an error.
_MOST_CHANGES = 3


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of the inputs that must be unchanged at resume."""

    data: str
    """SHA-256 of the training rows."""
    held_out: str
    """SHA-256 of the held-out rows; empty if there are none."""
    base: BaseFingerprint
    """Fingerprint of the base model; computed on a thread."""


@dataclass
class Checkpointer:
    """Writes and restores the checkpoints of a run, and writes its result.

    Args:
        config: The run's configuration.
        loaded: The model in training.
        update: Holds the optimizer's states.
        state: Training state, saved in checkpoints.
        checkpointing: Follows the restored state.
        fingerprints: Fingerprints of data and base.
        template: Chat template, if not the tokenizer's own.
        recorder: Receives events and notices.
        strategy: Distribution of trained weights; the other processes wait while rank 0 saves.
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
    """True if a checkpoint could not be written for lack of memory and must be retried."""
    _has_dropped_middle: bool = field(default=False, init=False)

    @property
    def output(self) -> Path:
        """Directory of the result: the adapter, or the model if its own weights are trained."""
        run = self.recorder.run
        return run.model_path if self.config.method.name in WEIGHT_METHODS else run.adapter_path

    def check_room(self) -> None:
        """Refuse if a checkpoint would not fit on the disk.

        Raises:
            UserError: If so.
        """
        size = checkpoints.size_estimate(self.loaded.model, self.config.train.optimizer)
        hint = "Make room, lower checkpoint.keep, or set LOCALTUNE_HOME to a larger disk."
        # Checkpoints may be on another disk than the run.
        disk = existing_parent(self.recorder.run.checkpoints_path)
        require_space(disk, size + checkpoints.DISK_RESERVE_BYTES, "a checkpoint", hint)

    # Writing.

    def save(self) -> None:
        """Write a checkpoint of the current step, unless it exists, and rotate old ones.

        A full disk does not end the run: it pauses until there is room. If memory runs out, saving is retried at once
        and after the next step.
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
            # A run resumed from the checkpoint must have the events before it.
            self.recorder.sync()
            written = self._write()
        except MemoryShortageError as error:
            self.postponed = True
            hint = "It is tried again after the next step, if there is one."
            self.recorder.warn("checkpoint_postponed", error.message, hint)
            return
        except (OSError, UserError) as error:
            reason = error.message if isinstance(error, UserError) else str(error)
            message = f"The checkpoint of step {step} was not written: {reason}"
            hint = "Make room, then resume; earlier checkpoints are untouched."
            self.recorder.notice("error", "checkpoint_failed", message, hint)
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
        """Trained weights and the holder of the optimizer's states, as in a run of one process."""
        if not self.strategy.gathers:
            return None, self.update
        self.strategy.orders.give("save")
        weights, states = self.strategy.whole_weights(trained_tensors(self.loaded.model)), self.update.state_dict()
        return weights, SimpleNamespace(state_dict=lambda: states)

    def lend(self, name: str) -> None:
        """In ranks after the first: send the shards that rank 0 needs.

        Args:
            name: ``save`` or ``result``.
        """
        if name == "save":
            self.strategy.whole_weights(trained_tensors(self.loaded.model))
            self.update.state_dict()
        else:
            self.strategy.whole_model(self.loaded.model)

    def drop_after(self, good: int | None) -> None:
        """Delete the checkpoints after the last good one, so that a resume starts there."""
        with self.strategy.orders.alone():
            if good is not None and (path := self._path(good)).is_dir():
                refuse_moved_checkpoints(self.recorder.run)
                self._rotate(path)
                self.recorder.seal("rollback", {"step": good})

    def _path(self, step: int) -> Path:
        return self.recorder.run.checkpoints_path / checkpoints.checkpoint_name(step)

    def _rotate(self, newest: Path) -> None:
        keep, protected = self.config.checkpoint.keep, self.state.best.protected | self._middle(newest)
        checkpoints.rotate(self.recorder.run.checkpoints_path, keep, newest=newest, protected=protected)

    def _middle(self, newest: Path) -> frozenset[int]:
        """The step of the checkpoint nearest to the middle of the run; empty if it is kept anyway, or not at all."""
        directory, options = self.recorder.run.checkpoints_path, self.config.checkpoint
        if not options.middle or self.config.method.name in WEIGHT_METHODS:
            return frozenset()
        steps = [step for step in checkpoints.steps_of(directory) if self._path(step).name <= newest.name]
        middle = middle_step(steps, self.state.total_steps)
        if middle in steps[-options.keep :] or middle in self.state.best.protected:
            return frozenset()
        free, size = free_bytes(directory), checkpoints.size_estimate(self.loaded.model, self.config.train.optimizer)
        if free is None or free >= 2 * (size + checkpoints.DISK_RESERVE_BYTES):
            return frozenset({middle})
        if not self._has_dropped_middle:
            self._has_dropped_middle = True
            message = f"The checkpoint of step {middle}, in the middle of the run, is not kept: the disk is short."
            self.recorder.notice("info", "middle_dropped", message, "Its answers are traced to rows less surely.")
        return frozenset()

    # Going on.

    def resume(self, found: Checkpoint, has_same_files: Callable[[], bool] = lambda: False) -> None:
        """Restore a resumed run, including options changed while it ran.

        Args:
            found: The checkpoint.
            has_same_files: Returns True if the data files are those that the checkpoint was made with.

        Raises:
            UserError: If data, base or the base's storage format have changed.
        """
        manifest, now = found.manifest, self.fingerprints
        if manifest["data_sha256"] != now.data and has_same_files():
            raise UserError(
                f"The data files are as they were at {found.path.name}, and their rows are read differently by this "
                "version.",
                "Continue the run with the version that began it, or start a new run.",
            )
        for what, is_as_before in (
            ("The training data", manifest["data_sha256"] == now.data),
            # Manifests of earlier versions have no hash of the held-out rows.
            ("What is held out", manifest.get("held_out_sha256", now.held_out) == now.held_out),
            (f"The base model {self.config.model.base}", now.base.matches(str(manifest["base_sha256"]))),
        ):
            if not is_as_before:
                raise UserError(f"{what} has changed since {found.path.name}.", "Put it back, or start a new run.")
        stored = check_storage(found, self.config, self.loaded.model)
        Retry(lambda: found.path.name, self.recorder.warn).run(
            lambda: self.restore(found),
            "in restoring it",
            "Close what else holds memory, and continue the run; the checkpoint is untouched.",
        )
        self.state.limits.resume(manifest.get("limits"))
        kept = {name: value for name, value in manifest["overrides"].items() if name in CHANGEABLE}
        self.state.overrides = kept
        if kept:
            # Earlier ``set`` events may have come after the checkpoint, and no longer apply.
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
        """Start all processes from the trained tensors of rank 0. Together."""
        self.strategy.begin(trained_tensors(self.loaded.model))

    # The result.

    def choose(self) -> Checkpoint | None:
        """The checkpoint that becomes the result; None for the current weights."""
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
            chosen: The checkpoint to take it from; None for the current weights.

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

        saving = Retry(lambda: "the end", self.recorder.warn)
        newest = f"The newest checkpoint holds it; free memory and 'localtune-tui continue {self.recorder.run.id}'."
        try:
            saving.run(write, f"in saving the {output.name}", newest)
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
        """Weights of the result, if no process has all of them."""
        if not self.strategy.is_sharded:
            return None
        self.strategy.orders.give("result")
        state = self.strategy.whole_model(self.loaded.model)
        if chosen is not None and state is not None:
            read_tensors(chosen.weights_path, {name: state[name] for name in trained_tensors(self.loaded.model)})
        return state


def find_checkpoint(config: Config, recorder: Recorder) -> Checkpoint:
    """The checkpoint that a run continues from; checked before minutes are spent on rows and model.

    Raises:
        UserError: If there is none, the configuration has changed since, or the loss used Liger's kernel.
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
    """Changed options, as the end of a sentence; empty if the checkpoint does not record them."""
    if not isinstance(before, dict):
        return ""
    changed = list(changed_options(before, now))
    told = [str(option) for option in changed[:_MOST_CHANGES]]
    if more := len(changed) - len(told):
        told.append(f"{more} more")
    return f": {', '.join(told)}" if told else ""


def agreed_checkpoint(config: Config, recorder: Recorder, ranks: Ranks) -> Checkpoint:
    """The checkpoint that all processes continue from: the one that rank 0 finds.

    Raises:
        RankLostError: If another process does not answer.
        UserError: As :func:`find_checkpoint`, or if this process cannot read that checkpoint.
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
    """The newest whole checkpoint of a run, if there is one; warns of damaged ones."""
    found, damaged = checkpoints.newest_valid(recorder.run.checkpoints_path)
    for sentence in damaged:
        recorder.warn("checkpoint_damaged", sentence, "An older checkpoint is used.")
    return found


def config_hash(config: Config) -> str:
    """SHA-256 of the sections that define the training."""
    return hashlib.sha256(json.dumps(fixed_options(config), sort_keys=True).encode("utf-8")).hexdigest()


def fixed_options(config: Config) -> dict[str, Any]:
    """Options that define the training, by section."""
    # Without defaults, so that a version with more options can continue runs of an earlier one.
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    fixed = {section: dumped.get(section, {}) for section in FIXED_SECTIONS}
    fixed["train"] = {name: value for name, value in fixed["train"].items() if name not in FREE_OPTIONS}
    return fixed
