"""The control point between two optimizer steps: commands carried out, pauses waited through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from core.chat.request import ChatRequest
from core.config.live import CHANGEABLE, read_changes
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.runs.changes import KEPT, record
from core.runs.events import ControlEvent
from core.worker.generate.generate import answering_as, generate
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.control import Command
from core.worker.process.log import log_exception

if TYPE_CHECKING:
    from core.worker.train import FinetuneRecipe

#: Checkpoints in a run when checkpoint.every_steps says nothing.
DEFAULT_CHECKPOINTS = 10
_ROUNDING = 1e-9


class Attendant:
    """Carries out, in the training thread, what the control socket asks of a recipe.

    Args:
        recipe: The recipe, its optimization prepared.
    """

    def __init__(self, recipe: FinetuneRecipe) -> None:
        self._recipe = recipe
        self.paused = False
        self.overrides: dict[str, Any] = {}
        """Options changed while running, ``section.key`` to value; checkpoints carry them."""
        self._commands: dict[str, Callable[[Command], str]] = {
            "pause": self._pause,
            "resume": self._resume,
            "checkpoint": self._checkpoint,
            "stop": self._stop,
            "generate": self._generate,
            "set": self._set,
        }

    @property
    def learning_rate(self) -> float:
        """The peak learning rate in force."""
        return float(self.overrides.get("train.learning_rate", self._recipe.config.train.learning_rate))

    def is_evaluation_due(self, step: int) -> bool:
        """Whether it is measured after a step, by the interval in force; one that was set counts in steps."""
        config = self._recipe.config.eval
        every: int | None = self.overrides.get("eval.every_steps", config.every_steps)
        if every is not None:
            return step % every == 0
        if config.every_epochs is None:
            return False
        interval = config.every_epochs * self._recipe.order.steps_per_epoch
        # The share is exact where an epoch is, and would otherwise be just below it.
        return int(step / interval + _ROUNDING) > int((step - 1) / interval + _ROUNDING)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints in force."""
        every = self.overrides.get("checkpoint.every_steps", self._recipe.config.checkpoint.every_steps)
        return int(every or math.ceil(self._recipe.total_steps / DEFAULT_CHECKPOINTS))

    def apply(self, overrides: dict[str, Any]) -> None:
        """Take over what was changed before the run was resumed."""
        self.overrides = {name: value for name, value in overrides.items() if name in CHANGEABLE}
        if self.overrides:
            # What is told before it may have been changed after the checkpoint, and holds no more.
            event = ControlEvent(command="set", sender=KEPT, result=record(self.overrides))
            self._recipe.recorder.event(event)

    def attend(self) -> None:
        """Carry out what waits; while paused, wait for more. Called between two steps, and in the long stretches
        without one, between two passes of an evaluation: no command meets half a step.

        Raises:
            StopRequested: If a stop was asked for.
        """
        controls = self._recipe.controls
        for command in controls.waiting():
            self._carry_out(command)
        if self.paused:
            self._wait()
        controls.check_stop()

    def pause(self) -> None:
        """Pause at the next control point."""
        self.paused = True

    def _wait(self) -> None:
        recipe = self._recipe
        recipe.recorder.update(state="paused")
        began = time.monotonic()
        while self.paused and recipe.controls.stop_sender is None:
            command = recipe.controls.wait(1.0)
            if command is not None:
                self._carry_out(command)
        recipe.paused_seconds += time.monotonic() - began
        if recipe.controls.stop_sender is None:
            recipe.recorder.update(state="training")

    def _carry_out(self, command: Command) -> None:
        name = command.request.command
        try:
            result = self._commands[name](command)
        except UserError as error:
            command.refuse(error.message, error.hint)
            result = f"refused: {error.message}"
        if name != "stop":  # that one is told at the end, whoever asked for it
            self._recipe.recorder.event(ControlEvent(command=name, sender="socket", result=result))

    def _pause(self, command: Command) -> str:
        self.paused = True
        command.answer(state="paused", step=self._recipe.step)
        return "ok"

    def _resume(self, command: Command) -> str:
        self.paused = False
        command.answer(state="training", step=self._recipe.step)
        return "ok"

    def _checkpoint(self, command: Command) -> str:
        recipe = self._recipe
        if recipe.step == 0:
            raise UserError("No step is done yet, so there is nothing to save.", "Try again after the first step.")
        recipe.keeper.save()
        if recipe.keeper.last_step != recipe.step:
            raise UserError("The checkpoint was not written.", "The run's notices say why.")
        command.answer(step=recipe.step)
        return "ok"

    def _stop(self, command: Command) -> str:
        command.answer(state="stopping", step=self._recipe.step)
        return "ok"

    def _generate(self, command: Command) -> str:
        recipe = self._recipe
        asked = read_generate_args(command.request.args, recipe.config)
        # Where the weights themselves are trained there is no base to switch to, and the answer's name says so.
        has_base = recipe.config.method.name not in WEIGHT_METHODS
        answered_by = "base" if asked.source == "base" and has_base else f"step-{recipe.step}"
        try:
            with recipe.accelerator.autocast(), answering_as(recipe.loaded.model, asked.source):
                generation = generate(
                    recipe.loaded.model,
                    recipe.loaded.tokenizer,
                    asked.messages,
                    asked.settings,
                    lambda piece: command.token(piece, answered_by),
                    lambda: command.cancelled.is_set() or recipe.controls.stop_sender is not None,
                    template=recipe.template,
                )
        except MemoryShortageError as error:
            recipe.recorder.notice("warning", "memory_chat", f"A chat question is refused. {error.message}", error.hint)
            raise
        except UserError:
            raise
        except Exception as error:  # a chat is a guest here: whatever goes wrong with it, the training goes on
            log_exception()
            reason = f"An error that should not happen: {type(error).__name__}: {error}"
            raise UserError(reason, f"The whole of it is in {recipe.run.log_path}; please report it.") from error
        command.answer(
            text=generation.text,
            tokens=generation.tokens,
            first_token_seconds=generation.first_token_seconds,
            tokens_per_second=generation.tokens_per_second,
            finish=generation.finish,
            source=answered_by,
        )
        return f"{answered_by}: {generation.tokens} tokens, {generation.finish}"

    def _set(self, command: Command) -> str:
        changes = read_changes(self._recipe.config, command.request.args)
        self.overrides |= changes
        command.answer(step=self._recipe.step, **{name.replace(".", "_"): value for name, value in changes.items()})
        return record(changes)


def read_generate_args(args: dict[str, Any], config: Config) -> ChatRequest:
    """A ``generate`` request; what it leaves out, the configuration says.

    Raises:
        UserError: If it makes no sense.
    """
    chat = config.chat
    defaults = {"max_new_tokens": chat.max_new_tokens, "temperature": chat.temperature, "top_p": chat.top_p}
    return ChatRequest.from_args(defaults | {name: value for name, value in args.items() if value is not None})
