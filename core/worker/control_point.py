"""Control point between two optimizer steps: carries out commands and waits through pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from core.chat.request import BASE, TUNED, ChatRequest, settings_of
from core.config.live import GOVERNED, read_changes
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.governor.policy import QUIET_HOURS
from core.governor.words import pause_reason
from core.runs.control.protocol import ActionError, refusal
from core.runs.record.events import ControlEvent
from core.runs.record.sentences import encode_changes
from core.text import one_line
from core.worker.checkpoint.checkpointer import Checkpointer
from core.worker.data.encode import as_model_tokenizer
from core.worker.distributed.ranks import lost_ranks_told
from core.worker.distributed.rendezvous import RankLostError
from core.worker.fused.file_weights import FileWeights
from core.worker.generate.generate import Generation, answer_prompt, answering_as, prepare_prompt
from core.worker.generate.room import ask_for_room
from core.worker.generate.scores import TokenScores
from core.worker.oom.retry import MemoryShortageError
from core.worker.process.control import Command, Controls, EvaluationSkipped
from core.worker.process.governor import Governor
from core.worker.process.log import log_exception


@dataclass
class ControlPoint:
    """Carries out the commands of the control socket in the training thread.

    Args:
        checkpointer: Writes requested checkpoints; holds the model in training, which also answers chat questions, and
            the state, which receives pauses and changed options.
        autocast: Precision of training.
        controls: Pending commands.
        governor: Pauses the run for heat and the like.
        file_weights: Weights of the file that is trained for, if any.
    """

    checkpointer: Checkpointer
    autocast: Callable[[], AbstractContextManager[Any]]
    controls: Controls
    governor: Governor
    file_weights: FileWeights | None = None

    def __post_init__(self) -> None:
        run = self.checkpointer
        self.config, self.loaded, self.state = run.config, run.loaded, run.state
        self.template, self.recorder, self.strategy = run.template, run.recorder, run.strategy

    @property
    def _is_held(self) -> bool:
        """True if a governor pauses the run, in this process or another."""
        return self.governor.pause is not None or self.strategy.orders.others_hold

    def attend(self) -> None:
        """Carry out pending commands; while paused, wait for more. Called between two steps, and between two passes of
        an evaluation, so no command ever meets half a step.

        Raises:
            StopRequested: If a stop was requested.
            EvaluationSkipped: If the current evaluation should be skipped.
        """
        orders = self.strategy.orders
        orders.look_after()
        told: set[str] = set()
        for command in self.controls.waiting():
            # A key pressed twice asks once, and makes one log entry.
            with orders.alone():
                self._carry_out(command, is_repeated=command.request.command in told)
            told.add(command.request.command)
        self.controls.check_stop()
        with orders.alone():
            if self.governor.take_checkpoint() and self.state.step:
                self.checkpointer.save()
            if self.state.paused or self._is_held:
                self._wait()
            else:
                self.governor.throttle.rest()
        if self.state.skipping:
            raise EvaluationSkipped

    def _wait(self) -> None:
        """Wait through a pause, carrying out commands meanwhile.

        Raises:
            StopRequested: If a stop is requested; the run is still paused then.
        """
        state, controls = self.state, self.controls
        self._tell_paused()
        began = time.monotonic()
        try:
            while state.paused or self._is_held:
                command = controls.wait(0.5 if self._is_held else 1.0)
                if command is not None:
                    self._carry_out(command)
                controls.check_stop()
                self._tell_paused()
                self.strategy.orders.look_after()
        finally:
            state.paused_seconds += time.monotonic() - began
            self.governor.throttle.paused()
        self.recorder.update(state="training", reason="")

    def _tell_paused(self) -> None:
        """Record the pause in the state, with the governor's reason if it has one."""
        hold, state = self.governor.pause, self.recorder.state
        why = "" if hold is None else pause_reason(hold.cause, hold.value, hold.limit)
        if hold is None and self._is_held:
            why = "the governor of another process of the run pauses it"
        if (state.state, state.reason) != ("paused", why):
            self.recorder.update(state="paused", reason=why)

    def _carry_out(self, command: Command, *, is_repeated: bool = False) -> None:
        name = command.request.command
        commands: dict[str, Callable[[Command], str | None]] = {
            "pause": self._pause,
            "resume": self._resume,
            "checkpoint": self._checkpoint,
            # Recorded at the end of the run, and once it has left the device.
            "park": lambda asked: asked.answer(state="parking", step=self.state.step),
            "stop": lambda asked: asked.answer(state="stopping", step=self.state.step),
            "generate": self._generate,
            "set": self._set,
            "withdraw": lambda _: None,
            "skip_evaluation": self._skip_evaluation,
        }
        try:
            result = commands[name](command)
        except UserError as error:
            command.refuse(**refusal(error))
            result = f"refused: {error.message}"
        if command.taken_back:
            taken_back = ", ".join(command.taken_back)
            self.recorder.event(ControlEvent(command="withdraw", sender="socket", result=taken_back))
        if result is not None and not (is_repeated and name in ("pause", "checkpoint")):
            self.recorder.event(ControlEvent(command=name, sender="socket", result=result))
        self.controls.done()

    def _pause(self, command: Command) -> str | None:
        was_paused, self.state.paused = self.state.paused, True
        command.answer(state="paused", step=self.state.step)
        return None if was_paused else "ok"

    def _resume(self, command: Command) -> str | None:
        was_paused, self.state.paused = self.state.paused, False
        if (hold := self.governor.pause) is not None:
            why = pause_reason(hold.cause, hold.value, hold.limit)
            over = "Your pause is over. " * was_paused
            is_quiet = hold.cause == QUIET_HOURS
            sooner = "sooner without quiet hours" if is_quiet else "sooner with another limit"
            raise ActionError(
                f"The governor pauses the run: {why}.",
                f"{over}It goes on by itself, {sooner}.",
                "lift_quiet_hours" if is_quiet else "set",
            )
        command.answer(state="training", step=self.state.step)
        return "ok" if was_paused else None

    def _skip_evaluation(self, command: Command) -> str:
        if not self.state.measures_baseline:
            raise UserError(
                "There is no evaluation to skip.", "The one before the first step can be skipped, while it is on."
            )
        self.state.skipping = True
        command.answer(step=self.state.step)
        return "ok"

    def _checkpoint(self, command: Command) -> str:
        state = self.state
        if state.step == 0:
            raise UserError("No step is done yet, so there is nothing to save.", "Try again after the first step.")
        self.checkpointer.save()
        if state.saved != state.step:
            raise UserError("The checkpoint was not written.", "The run's notices say why.")
        command.answer(step=state.step)
        return "ok"

    def _generate(self, command: Command) -> str:
        asked = read_generate_args(command.request.args, self.config)
        # A fully trained model has no base to switch to, and the answer's name says so.
        has_base = self.config.method.name not in WEIGHT_METHODS
        answered_by = BASE if asked.source == BASE and has_base else f"step-{self.state.step}"
        try:
            generation = self._answer(asked, command, answered_by)
        except MemoryShortageError as error:
            self.recorder.warn("memory_chat", f"A chat question is refused. {error.message}", error.hint)
            raise
        except (UserError, RankLostError):
            raise
        except Exception as error:  # no failure of a chat may end the training
            log_exception()
            reason = f"An error that should not happen: {type(error).__name__}: {error}"
            hint = f"The whole of it is in {self.recorder.run.log_path}; please report it."
            raise UserError(reason, hint) from error
        command.answer(**generation.to_answer(answered_by))
        return f"{answered_by}: {generation.tokens} tokens, {generation.finish}"

    def _answer(self, asked: ChatRequest, command: Command, answered_by: str) -> Generation:
        """Answer of the model in training, or of its base.

        Raises:
            MemoryShortageError: If there is not enough memory.
            UserError: If the prompt is too long for the model, or its template refuses the conversation.
            RankLostError: If another process of the run does not answer.
        """
        began, model = time.monotonic(), self.loaded.model
        # The base answers with its own weights, even if a file's weights are trained.
        own = nullcontext() if self.file_weights is None or asked.source != BASE else self.file_weights.base_alone()
        with lost_ranks_told(), self.strategy.leading(), self.autocast(), own, answering_as(model, asked.source):
            prompt = prepare_prompt(
                model,
                self.loaded.tokenizer,
                asked.messages,
                asked.budget,
                self.template,
                tools=asked.tools,
                text=asked.prompt,
                forced_tools=asked.forced_tools,
                several_calls=asked.several_calls,
                echo=asked.echo,
            )
            ask_for_room(prompt, self.loaded.dtype, self.loaded.device)
            return answer_prompt(
                model,
                self.loaded.tokenizer,
                prompt,
                asked.settings,
                lambda piece: command.token(piece, answered_by),
                lambda: self._is_to_end(command),
                began=began,
                json_schema=asked.json_schema,
                scores=TokenScores.of(
                    asked, as_model_tokenizer(self.loaded.tokenizer, ()).token_bytes, command.say_scores
                ),
            )

    def _is_to_end(self, command: Command) -> bool:
        """True if an answer should end; checked before each of its tokens."""
        self.strategy.orders.look_after()
        return command.cancelled.is_set() or self.controls.is_leaving

    def _set(self, command: Command) -> str:
        state, changes = self.state, read_changes(self.config, command.request.args)
        if changes.keys() & set(GOVERNED):
            self.governor.change(self.governor.check(state.overrides | changes))
        state.overrides |= changes
        command.answer(step=state.step, **{name.replace(".", "_"): value for name, value in changes.items()})
        return encode_changes(changes)


def read_generate_args(args: dict[str, Any], config: Config) -> ChatRequest:
    """A ``generate`` request, with defaults from the configuration.

    Raises:
        UserError: If it is invalid.
    """
    # A null seed is a value of its own: a new draw each time.
    given = {name: value for name, value in args.items() if value is not None or name == "seed"}
    request = ChatRequest.from_args(settings_of(config.chat) | given)
    if request.source not in (TUNED, BASE):
        raise UserError(
            f"A model in training answers as tuned or base, and not as {one_line(request.source, 80)}.",
            "Chat with a checkpoint by RUN@STEP.",
        )
    return request
