"""What a run writes down so that it can go on, and what comes out of it in the end."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.runs.events import CheckpointEvent
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.checkpoint.checkpoint import Checkpoint
from core.worker.model.full_weights import trained_tensors
from core.worker.model.safetensors_io import read_tensors
from core.worker.oom.retry import TRIES, MemoryShortageError, Retry, attempt

if TYPE_CHECKING:
    from core.worker.train import FinetuneRecipe

#: Sections of the configuration that a resumed run must share with its beginning.
FIXED_SECTIONS = ("model", "data", "template", "method", "train")


class Keeper:
    """Checkpoints of a recipe and its result: written, found again, put back.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self._recipe = recipe
        self._run = recipe.run
        self._config = recipe.config
        self._recorder = recipe.recorder
        self.last_step: int | None = None
        """The step of the newest checkpoint that is whole."""
        self.postponed = False
        """Whether one could not be written for want of memory, and is to be tried again."""

    @property
    def output(self) -> Path:
        """Where the result goes: the adapter, or the model where its own weights are trained."""
        return self._run.model_path if self._config.method.name in WEIGHT_METHODS else self._run.adapter_path

    def path(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self._run.checkpoints_path / checkpoints.checkpoint_name(step)

    def check_room(self) -> None:
        """Refuse when a checkpoint would not fit on the disk.

        Raises:
            UserError: If so.
        """
        size = checkpoints.size_estimate(self._recipe.loaded.model, self._config.train.optimizer)
        checkpoints.check_room(self._run.path, size)

    # Writing.

    def save(self) -> None:
        """Write a checkpoint of the present step, unless there is one; old ones are rotated out afterwards.

        A full disk does not end the run: it is paused, to be resumed when there is room. When memory runs out, it is
        tried again, at once and after the next step.
        """
        step = self._recipe.step
        if self.last_step == step or step == 0:
            return
        began = time.monotonic()
        try:
            self.check_room()
            # Whoever goes on from a checkpoint has the events of the steps before it.
            self._recorder.sync()
            written = self._write(step)
        except MemoryShortageError as error:
            self.postponed = True
            self._recipe.warn(
                "checkpoint_postponed", error.message, "It is tried again after the next step, if there is one."
            )
            return
        except (OSError, UserError) as error:
            reason = error.message if isinstance(error, UserError) else str(error)
            self._recorder.notice(
                "error",
                "checkpoint_failed",
                f"The checkpoint of step {step} was not written: {reason}",
                "Make room, then resume; earlier checkpoints are untouched.",
            )
            self._recipe.attendant.pause()
            return
        self.last_step = step
        self.postponed = False
        self._recipe.selection.saved(step)
        self._rotate(written.path)
        size = sum(facts["bytes"] for facts in written.manifest["files"].values())
        path = str(written.path.relative_to(self._run.path))
        self._recorder.event(CheckpointEvent(step=step, path=path, bytes=size, seconds=time.monotonic() - began))

    def _write(self, step: int) -> Checkpoint:
        def write() -> Checkpoint:
            return checkpoints.save_checkpoint(
                self._run.checkpoints_path,
                model=self._recipe.loaded.model,
                optimizer=self._recipe.update,
                step=step,
                facts=self._facts(),
            )

        reason = ""
        for _ in range(TRIES):
            tried = attempt(write)
            if tried.result is not None:
                return tried.result
            reason = tried.reason or ""
        raise MemoryShortageError(f"Memory ran out in saving the checkpoint of step {step}: {reason}", "")

    def _facts(self) -> dict[str, Any]:
        recipe, scaler = self._recipe, self._recipe.accelerator.scaler
        return {
            "config_sha256": config_hash(self._config),
            "data_sha256": recipe.data_fingerprint,
            "held_out_sha256": recipe.held_out_fingerprint,
            "base_sha256": recipe.base_fingerprint.value,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "total_steps": recipe.total_steps,
            "token_budget": recipe.windows.token_budget,
            "reference_budget": recipe.measured.token_budget if recipe.measured is not None else None,
            "gradient_checkpointing": recipe.windows.checkpointing,
            "activation_offload": recipe.windows.offloading,
            "liger": recipe.liger,
            "overrides": recipe.attendant.overrides,
            "selection": recipe.selection.facts(),
            "health": recipe.health.facts(),
        }

    def drop_after(self, good: int | None) -> None:
        """Take away the checkpoints after the last good one, so that whoever goes on begins there."""
        if good is not None and (path := self.path(good)).is_dir():
            self._rotate(path)

    def _rotate(self, newest: Path) -> None:
        keep, protected = self._config.checkpoint.keep, self._recipe.selection.protected
        checkpoints.rotate(self._run.checkpoints_path, keep, newest=newest, protected=protected)

    # Going on.

    def find(self) -> Checkpoint:
        """The checkpoint to go on from; asked before minutes are spent on the rows and the model.

        Raises:
            UserError: If there is none, or the configuration has changed since.
        """
        found = self.newest()
        if found is None:
            raise UserError(f"Run {self._run.id} has no valid checkpoint to go on from.", "Start it again.")
        if found.manifest["config_sha256"] != config_hash(self._config):
            raise UserError(
                f"{self._run.config_path} has changed since {found.path.name}.", "Put it back, or start a new run."
            )
        return found

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, if there is one; those that are damaged are told."""
        found, damaged = checkpoints.newest_valid(self._run.checkpoints_path)
        for sentence in damaged:
            self._recorder.notice("warning", "checkpoint_damaged", sentence, "An older checkpoint is used.")
        return found

    def restore(self, found: Checkpoint) -> None:
        """Put the recipe of a run that goes on where it was.

        Raises:
            UserError: If data or base have changed since.
        """
        recipe = self._recipe
        # Checkpoints of earlier versions say nothing of the rows that are measured.
        held_out = found.manifest.get("held_out_sha256", recipe.held_out_fingerprint)
        for what, is_as_before in (
            ("The training data", found.manifest["data_sha256"] == recipe.data_fingerprint),
            ("What is held out", held_out == recipe.held_out_fingerprint),
            (
                f"The base model {self._config.model.base}",
                recipe.base_fingerprint.matches(str(found.manifest["base_sha256"])),
            ),
        ):
            if not is_as_before:
                raise UserError(f"{what} has changed since {found.path.name}.", "Put it back, or start a new run.")
        self.put_back(found)
        recipe.attendant.apply(found.manifest["overrides"])
        self._recorder.update(step=recipe.step)
        self._recorder.notice("info", "resumed", f"Going on from {found.path.name}.")

    def put_back(self, found: Checkpoint) -> None:
        """Put back what a checkpoint has of the recipe: weights, optimizer, random state, step, and what follows.

        Raises:
            UserError: If it does not fit the model.
        """
        recipe, manifest = self._recipe, found.manifest
        checkpoints.restore(found, model=recipe.loaded.model, optimizer=recipe.update)
        if recipe.accelerator.scaler is not None and manifest["scaler"] is not None:
            recipe.accelerator.scaler.load_state_dict(manifest["scaler"])
        recipe.step = self.last_step = found.step
        self.postponed = False
        recipe.windows.token_budget = int(manifest["token_budget"])
        # Checkpoints of earlier versions do not say where activations were kept.
        offload = bool(manifest.get("activation_offload", False))
        recipe.windows.set_checkpointing(bool(manifest["gradient_checkpointing"]), offload=offload)
        recipe.selection.restore(manifest["selection"], found.step)
        recipe.health.restore(manifest["health"])

    # The result.

    def choose(self) -> Checkpoint | None:
        """The checkpoint that becomes the result; None for the weights as they are."""
        best = self._recipe.selection.best_step
        if self._config.checkpoint.final == "last" or best == self._recipe.step:
            return None
        try:
            if best is None:
                raise UserError("No step was measured with a finite loss.")
            return checkpoints.verify_checkpoint(self.path(best))
        except UserError as error:
            self._recorder.notice(
                "warning", "best_missing", f"The best step cannot be taken: {error.message}", "The last one is."
            )
        return None

    def save_result(self, chosen: Checkpoint | None) -> None:
        """Write the adapter or the model, tokenizer and template beside it.

        Args:
            chosen: The checkpoint that it is taken from; None for the weights as they are.

        Raises:
            UserError: If it cannot be written.
        """
        recipe, output = self._recipe, self.output

        def fill(directory: Path) -> None:
            if output == self._run.model_path:
                if chosen is not None:
                    read_tensors(chosen.weights_path, trained_tensors(recipe.loaded.model))
                checkpoints.save_model(recipe.loaded.model, directory)
            elif chosen is not None:
                shutil.copytree(chosen.adapter_path, directory, dirs_exist_ok=True)
            else:
                checkpoints.save_adapter(recipe.loaded.model, directory)
            recipe.loaded.tokenizer.save_pretrained(directory)
            if recipe.template is not None:
                (directory / "chat_template.jinja").write_text(recipe.template, encoding="utf-8")

        def nothing() -> None:
            """What was half written is gone already."""

        saving = Retry(lambda: "the end", recipe.warn)
        newest = f"The newest checkpoint holds it; free memory and 'localtune-tui continue {self._run.id}'."
        try:
            saving.run(
                lambda: checkpoints.write_directory(output, fill), nothing, f"in saving the {output.name}", newest
            )
        except OSError as error:
            raise UserError(
                f"The {output.name} cannot be written to {output}: {error}.",
                f"The newest checkpoint holds it; make room and 'localtune-tui continue {self._run.id}'.",
            ) from error


def config_hash(config: Config) -> str:
    """SHA-256 over the sections that decide what is trained and how."""
    # Without what is as always, so that a version with more options goes on with the runs of an earlier one.
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    fixed = {section: dumped.get(section, {}) for section in FIXED_SECTIONS}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode("utf-8")).hexdigest()
