"""An evaluation: each model answers the questions of a prompt set; the answers are scored and kept."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from core.chat.request import GenerationSettings
from core.chat.session import Answer, ChatSession
from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.prompt_set import PromptSet, read_held_out, read_prompt_set
from core.evaluation.record import Answered, EvaluationRecord, RecordFile, folder_of, free_path, make_folder, unfinished
from core.evaluation.score import Scorer
from core.evaluation.targets import Target, resolve_targets
from core.jobs.job import JobCancelledError, JobProgress


@dataclass
class Evaluation:
    """Puts a prompt set to models; one model is loaded at a time.

    Args:
        prompts: The questions.
        targets: The models; the others are compared with the first.
        max_new_tokens: The longest answer, in tokens. Answers are greedy, so that they are the same each time.
        check: A user's own check.
    """

    prompts: PromptSet
    targets: Sequence[Target]
    max_new_tokens: int = 256
    check: Check | None = None
    record: EvaluationRecord = field(init=False)
    """The results so far; an interrupted earlier attempt's, if there is one."""
    file: RecordFile | None = field(default=None, init=False)
    """Its file, once it has begun."""
    is_continued: bool = field(default=False, init=False)
    """True if answers of an earlier attempt are taken over."""

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self._session: ChatSession | None = None
        self._guard = threading.Lock()
        self._settings = GenerationSettings(max_new_tokens=self.max_new_tokens)
        self._scorer = Scorer(self.prompts.items, self.check)
        told = list(self.check.command) if self.check is not None else None
        settings = {"max_new_tokens": self.max_new_tokens, "check": told}
        self.record = EvaluationRecord.new(self.prompts, self.targets, settings)

    @property
    def folder(self) -> Path:
        """The directory of its record: the first run's, or the home's."""
        return folder_of(next((target.run for target in self.targets if target.run is not None), None))

    @property
    def can_be_right(self) -> bool:
        """True if an answer can be right or wrong: one is expected, has a schema, or is checked."""
        return self.check is not None or any(
            item.expected is not None or item.schema is not None for item in self.prompts.items
        )

    def run(self, progress: Callable[[JobProgress], None] = lambda _: None) -> EvaluationRecord:
        """Ask and score; blocks. Continues an interrupted evaluation with the same questions.

        Args:
            progress: Called before each answer and while a model is loaded.

        Raises:
            JobCancelledError: If :meth:`cancel` was called; the results so far are kept.
            UserError: If a model cannot answer, or the check or the disk fails; likewise.
        """
        make_folder(self.folder)
        found = unfinished(self.folder, self.record)
        if found is not None:
            path, self.record = found
            self.file, self.is_continued = RecordFile(path, self.record), self.record.done > 0
        else:
            path = free_path(self.folder, self.record.id)
            self.record.id = path.stem
            self.file = RecordFile(path, self.record)
            self.file.write()
        try:
            # Targets with the same loaded model are adjacent, in the order of the table.
            loads = [target.loads for target in self.targets]
            order = sorted(self.targets, key=lambda target: loads.index(target.loads))
            for _, group in itertools.groupby(order, key=lambda target: target.loads):
                self._ask_group(list(group), progress)
            self.record.state = "done"
        finally:
            self.file.write()
        return self.record

    def _ask_group(self, group: Sequence[Target], progress: Callable[[JobProgress], None]) -> None:
        record = self.record
        open_places = {
            target.name: [place for place, answer in enumerate(record.answers[target.name]) if answer is None]
            for target in group
        }
        if not any(open_places.values()):
            return
        self._check_cancelled()
        session = group[0].open()
        with self._guard:
            self._session = session

        def tell(target: Target, activity: str) -> None:
            progress(JobProgress(f"{target.name}: {activity}", record.done, record.total))

        try:
            tell(group[0], "loading the model")
            session.prepare(lambda activity, _done, _total: tell(group[0], activity))
            for target in group:
                for place in open_places[target.name]:
                    self._check_cancelled()
                    tell(target, "answering")
                    record.answers[target.name][place] = self._ask(session, target, place)
                    if self.file is not None:
                        self.file.write_if_due()
                tell(target, "answering")
        except UserError:
            # A session that was closed to cancel it says that it has ended.
            self._check_cancelled()
            raise
        finally:
            with self._guard:
                self._session = None
            session.close()

    def _ask(self, session: ChatSession, target: Target, place: int) -> Answered:
        messages = [dict(message) for message in self.prompts.items[place].messages]
        began = time.monotonic()
        answer: Answer | None = None
        for piece in session.generate(messages, target.source, self._settings):
            if isinstance(piece, Answer):
                answer = piece
        self._check_cancelled()
        if answer is None:
            raise UserError(f"{target.name} gave no answer.", "Try again: the answers so far are kept.")
        seconds = round(time.monotonic() - began, 3)
        return Answered(answer.text, answer.tokens, seconds, answer.finish, self._scorer.score(place, answer.text))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise JobCancelledError

    def cancel(self) -> None:
        """End it soon; safe from any thread, and to call again."""
        self._cancelled.set()
        with self._guard:
            session = self._session
        if session is not None:
            session.close()


#: Longest answer if neither the request nor a run sets a limit, in tokens.
LONGEST = 256


@dataclass(frozen=True)
class EvaluationRequest:
    """A request; the first run provides missing values."""

    targets: tuple[str, ...]
    """See :func:`core.evaluation.targets.resolve_targets`."""
    against: tuple[str, ...] = ()
    prompts: str | None = None
    """See :func:`core.evaluation.prompt_set.read_prompt_set`; by default the rows that the run held
    out, of ``data.eval`` or of its training files."""
    limit: int | None = None
    max_new_tokens: int | None = None
    check: str | None = None
    """See :meth:`core.evaluation.check.Check.parse`."""

    def prepare(self, progress: Callable[[JobProgress], None] = lambda _: None) -> Evaluation:
        """The evaluation: models are found and prompts read, nothing is loaded.

        Args:
            progress: Called while the rows held out are looked for; may raise to stop.

        Raises:
            UserError: If a part of it is missing or unusable.
        """
        if self.limit is not None and self.limit < 1:
            raise UserError("A limit must be at least 1.", "Leave it out to take all prompts.")
        check = Check.parse(self.check) if self.check is not None else None
        targets = resolve_targets(self.targets, self.against)
        trained = next((target.trained for target in targets if target.trained is not None), None)
        prompts, system, longest = self.prompts, "", LONGEST
        if trained is not None:
            config = trained.config
            system, longest = config.chat.system, config.chat.max_new_tokens
            held_out = config.data.eval
            if prompts is None and held_out is not None:
                prompts = held_out if isinstance(held_out, str) else held_out[0]
        if self.max_new_tokens is not None:
            longest = self.max_new_tokens
        if prompts is not None:
            asked = read_prompt_set(prompts, limit=self.limit, system=system)
        elif trained is not None and trained.config.data.eval_share:
            asked = read_held_out(trained, limit=self.limit, progress=progress)
        else:
            raise UserError("No file of prompts is named, and no row is held out.", "Name one, or a dataset.")
        return Evaluation(asked, targets, longest, check)
