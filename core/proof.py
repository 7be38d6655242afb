"""Proof that an answer depends on rows: the run is trained again without them, and as control without as many random
rows; a question and its siblings are asked of all three.

Both runs keep the order (``data.exclude``) and everything else of the original run. They answer the questions as
``eval.prompts``, so that their answers come with them. Answers that change in the control are the noise of any
retraining. A proof is kept in the original run, ``trace/proofs/ID.json``, with its questions beside it.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from core.analysis.job import analyze
from core.analysis.problems import FileLine
from core.analysis.result import Analysis, AnalysisRequest, request_for
from core.analysis.row_samples import row_places, tokenizer_directory
from core.atomic import write_atomic
from core.chat.prompts import PROMPT_LIMIT
from core.chat.request import TUNED, ChatRequest, GenerationSettings
from core.chat.session import Answer, session_of
from core.config.document import ConfigDocument
from core.config.schema import Config
from core.data.exclusion import EXCLUDED, entries_of
from core.directories import disk_error
from core.errors import UserError
from core.evaluation.prompt_set import PromptItem, read_held_out, read_prompt_set, refuse_changed_files
from core.evaluation.record import free_path, make_folder
from core.jobs.job import JobProgress
from core.queue import store
from core.queue.entry import ACTIVE, QueueEntry
from core.queue.fate import run_of
from core.runs.catalog.rows import PROOFS, proof_path
from core.runs.catalog.trained import TrainedModel, find_trained
from core.runs.record.events import TEXT_LIMIT
from core.runs.record.history import read_history
from core.runs.record.sentences import slug_of
from core.runs.record.state import in_words
from core.runs.record.store import Run, list_runs, refuse_live
from core.small_files import read_json
from core.template.builtin import named_or_file
from core.text import one_line
from core.units import counted

VERSION = 1
#: Largest file that is read, in bytes.
FILE_LIMIT = 16 << 20
#: Siblings of a question that are asked unless others are given.
SIBLINGS = 8
#: Share of the rows that may be left out.
_MOST = 0.5

Messages = Sequence[Mapping[str, str]]
#: Answers some conversations.
Ask = Callable[[Sequence[Messages]], list[str]]
Told = Callable[[JobProgress], None]
State = Literal["queued", "running", "done", "failed"]


@dataclass(frozen=True)
class Proof:
    """A proof, as it is kept.

    Args:
        id: Its id in the run.
        created: Unix seconds.
        rows: Entries of ``data.exclude`` for the rows that are left out.
        count: Number of these rows.
        control: Entries for as many random rows.
        before: Entries that the original run left out already.
        questions: The question asked, then its siblings; ``expected`` is the answer wanted, as far as it is known.
        answers: Answers of the original run.
        entries: Entries of the queue: without the rows, and the control.
    """

    id: str
    created: float
    rows: tuple[str, ...]
    count: int
    control: tuple[str, ...]
    before: tuple[str, ...]
    questions: tuple[PromptItem, ...]
    answers: tuple[str, ...]
    entries: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """A dictionary for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Any) -> Proof:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: If it is none.
        """
        if data["version"] != VERSION:
            raise ValueError("another version")
        rows, control, before, answers = (
            tuple(map(str, data[name])) for name in ("rows", "control", "before", "answers")
        )
        questions = tuple(map(PromptItem.from_dict, data["questions"]))
        if not questions or len(questions) != len(answers):
            raise ValueError("answers that are not one for each question")
        entries = int(data["entries"][0]), int(data["entries"][1])
        numbers = float(data["created"]), int(data["count"])
        return cls(str(data["id"]), numbers[0], rows, numbers[1], control, before, questions, answers, entries)


def begin_proof(
    run: Run,
    rows: Sequence[FileLine],
    messages: Messages,
    *,
    wanted: str = "",
    siblings: Sequence[PromptItem] | None = None,
    ask: Ask | None = None,
    progress: Told = lambda _: None,
) -> Proof:
    """Put the two runs of a proof into the queue; blocks, as the data are analyzed and the run is asked. The queue is
    not started.

    Args:
        run: The original run.
        rows: Rows to leave out.
        messages: The question, a conversation that ends with the user's turn.
        wanted: The answer that it should have; empty if unknown.
        siblings: Further questions; None for the held-out rows most like it.
        ask: Asks the original run, greedily; None to load its result here.
        progress: Called with each stage; may raise to stop.

    Raises:
        UserError: If the run is live or has no result, its data have changed, a row is not trained on, or the queue or
            the run cannot be written. Nothing is queued then.
    """
    if not rows:
        raise UserError("No rows are named.", "Name the rows to leave out, as in tickets.jsonl:17.")
    refuse_live(run, "only an ended run is proved")
    ChatRequest([dict(message) for message in messages])  # refuses conversations that no model could answer
    trained = find_trained(run)
    config = ConfigDocument.load(run.own_config_path).validate()
    refuse_changed_files(trained, "its rows are not those that it was trained on", "Train it again first.")
    progress(JobProgress("dividing the rows as the run did"))
    request = replace(
        request_for(
            config,
            model=str(tokenizer_directory(config.model.base)),
            template=named_or_file(trained.template),
        ),
        exclude=(*config.data.excluded, *entries_of(rows)),
    )
    analysis = analyze(request, progress)
    control = _random_rows(request, analysis, rows, config)
    asked = PromptItem("asked", tuple(dict(message) for message in messages), wanted or None)
    if siblings is None:
        progress(JobProgress("looking for questions like it"))
        siblings = siblings_of(trained, asked, progress=progress)
    questions = (asked, *siblings)[:PROMPT_LIMIT]
    answers = (ask or _asker(trained, progress))([item.messages for item in questions])
    stem = f"{datetime.now():%Y%m%d-%H%M%S}"
    proof = Proof(
        id=free_path(run.path / PROOFS, stem).stem,
        created=time.time(),
        rows=tuple(entries_of(rows)),
        count=len(set(rows)),
        control=tuple(control),
        before=config.data.excluded,
        questions=questions,
        answers=tuple(answer[:TEXT_LIMIT] for answer in answers),
        entries=(0, 0),
    )
    return _queue(run, config, proof)


def _random_rows(request: AnalysisRequest, analysis: Analysis, rows: Sequence[FileLine], config: Config) -> list[str]:
    """Entries for as many random rows as are left out, among the others that are trained on."""
    wanted, count, before = len(set(rows)), analysis.dropped.get(EXCLUDED, 0), 0
    if config.data.excluded:
        before = analyze(replace(request, exclude=config.data.excluded)).dropped.get(EXCLUDED, 0)
    if count - before < wanted:
        raise UserError(
            f"Only {count - before} of the {counted(wanted, 'row')} are trained on, once each.",
            "Leave out those that are held out, not used, or left out already.",
        )
    unused = {index for problem in analysis.problems if problem.kind.level == "drop" for index in problem.indices}
    others = sorted(set(range(analysis.rows)) - unused - set(analysis.held_out))
    if count > _MOST * analysis.ordered or len(others) < wanted:
        raise UserError(
            f"{counted(count, 'row')} of {analysis.ordered} would be left out, which proves nothing.", "Name fewer."
        )
    dice = random.Random(f"{config.train.seed} {sorted(rows)}")  # noqa: S311 - a choice, no secret
    return entries_of(row_places(request, dice.sample(others, wanted)))


def siblings_of(
    trained: TrainedModel, asked: PromptItem, count: int = SIBLINGS, *, progress: Told = lambda _: None
) -> list[PromptItem]:
    """The held-out questions that share most words with a question, most alike first; none without held-out rows.

    Args:
        trained: The model of the run.
        asked: The question.
        count: Most questions.
        progress: Called while they are looked for; may raise to stop.

    Raises:
        UserError: As :func:`core.evaluation.prompt_set.read_prompt_set`.
    """
    data = trained.config.data
    if data.eval is not None:
        first = data.eval if isinstance(data.eval, str) else data.eval[0]
        held_out = read_prompt_set(first, limit=trained.config.eval.max_rows, system=trained.config.chat.system)
    elif data.eval_share:
        held_out = read_held_out(trained, progress=progress)
    else:
        return []
    mine = _words(asked.question)

    def alike(item: PromptItem) -> float:
        theirs = _words(item.question)
        return len(mine & theirs) / max(len(mine | theirs), 1)

    others = [item for item in held_out.items if item.question != asked.question]
    return sorted(others, key=alike, reverse=True)[:count]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _asker(trained: TrainedModel, progress: Told) -> Ask:
    def ask(conversations: Sequence[Messages]) -> list[str]:
        session = session_of(trained)
        settings = GenerationSettings(max_new_tokens=trained.config.chat.max_new_tokens)
        try:
            progress(JobProgress("loading the model"))
            session.prepare(lambda activity, done, total: progress(JobProgress(activity, done, total)))
            found = []
            for number, messages in enumerate(conversations):
                progress(JobProgress("asking the run", number, len(conversations)))
                pieces = session.generate([dict(message) for message in messages], TUNED, settings)
                found += [piece.text for piece in pieces if isinstance(piece, Answer)]
        finally:
            session.close()
        if len(found) < len(conversations):
            raise UserError("The run gave no answer to a question.", "Try again.")
        return found

    return ask


def _queue(run: Run, config: Config, proof: Proof) -> Proof:
    """Write a proof with its questions, and add its runs to the queue."""
    folder = run.path / PROOFS
    make_folder(folder.parent)
    make_folder(folder)
    questions = folder / f"{proof.id}.jsonl"
    lines = (json.dumps({"messages": item.messages}, ensure_ascii=True) for item in proof.questions)
    entries = []
    for title, left_out in ((f"without {counted(proof.count, 'row')}", proof.rows), ("control", proof.control)):
        excluded = [*proof.before, *left_out]
        entry = QueueEntry(
            id=1,
            name=f"{slug_of(run.id)[:14]} {title}",
            added=time.time(),
            source=str(run.own_config_path),
            overrides=(f"data.exclude={json.dumps(excluded)}", f"eval.prompts={questions}"),
        )
        made = config.with_options(
            data={"exclude": excluded}, eval={"prompts": str(questions)}, checkpoint={"index": False}
        )
        entries.append((entry, made))
    try:
        with contextlib.ExitStack() as undo:
            for path in (questions, folder / f"{proof.id}.json"):
                undo.callback(path.unlink, missing_ok=True)
            write_atomic(questions, "".join(f"{line}\n" for line in lines))
            # Before the queue: its runs would have nothing to belong to.
            _write(folder, proof)
            without, control = store.add(entries)
            undo.pop_all()
        proof = replace(proof, entries=(without.id, control.id))
        _write(folder, proof)
    except OSError as error:
        raise disk_error(folder, error) from error
    return proof


def _write(folder: Path, proof: Proof) -> None:
    write_atomic(folder / f"{proof.id}.json", json.dumps(proof.to_dict(), ensure_ascii=True, indent=1) + "\n")


def list_proofs(run: Run) -> list[Proof]:
    """The proofs of a run that can be read, newest first."""
    found = []
    for path in sorted((run.path / PROOFS).glob("*.json"), reverse=True):
        try:
            proof = Proof.from_dict(read_json(path, FILE_LIMIT))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            continue
        found.append(replace(proof, id=path.stem))
    return found


# The result.


@dataclass(frozen=True)
class ProofRun:
    """A run of a proof, with its present state."""

    title: str
    """``without 3 rows`` or ``without 3 random rows``."""
    state: State
    run: str = ""
    """Id of the run; empty before it is started."""
    words: str = ""
    """Its state in words."""
    answers: tuple[str, ...] = ()
    """Its answers to the questions; empty before its end."""


@dataclass(frozen=True)
class Compared:
    """Answers to a question."""

    question: str
    expected: str | None
    original: str
    without: str
    control: str

    @property
    def is_changed(self) -> bool:
        """True if the answer is another without the rows."""
        return self.without.strip() != self.original.strip()

    @property
    def is_noisy(self) -> bool:
        """True if the answer is another without random rows."""
        return self.control.strip() != self.original.strip()


@dataclass(frozen=True)
class ProofView:
    """A proof with its runs."""

    proof: Proof
    without: ProofRun
    control: ProofRun

    @property
    def state(self) -> State:
        """``failed`` if either run has no answers and gets none, ``done`` if both have answered."""
        states = {self.without.state, self.control.state}
        order: tuple[State, ...] = ("failed", "running", "queued", "done")
        if states == {"done", "queued"}:
            return "running"
        return next(state for state in order if state in states)

    @property
    def compared(self) -> list[Compared]:
        """Answers side by side, the question asked first; empty before both runs have answered."""
        if self.state != "done":
            return []
        proof = self.proof
        columns = zip(proof.questions, proof.answers, self.without.answers, self.control.answers, strict=True)
        return [Compared(item.question, item.expected, *answers) for item, *answers in columns]

    @property
    def summary(self) -> str:
        """The result, or the state of the runs, in a sentence or two."""
        compared, proof = self.compared, self.proof
        if not compared:
            return "; ".join(f"{one.title}: {one.words}" for one in (self.without, self.control)) + "."
        changed, noisy = (sum(each) for each in zip(*((row.is_changed, row.is_noisy) for row in compared), strict=True))
        rows = "this row" if proof.count == 1 else f"these {proof.count} rows"
        random_rows = "1 random row" if proof.count == 1 else f"{proof.count} random rows"
        first = compared[0]

        def become(answer: str) -> str:
            is_wanted = first.expected is not None and answer.strip() == first.expected.strip()
            return "the one wanted" if is_wanted else "another"

        asked = f"The answer stays the same without {rows}"
        if first.is_changed:
            asked = f"Without {rows} the answer is {become(first.without)}"
        if first.is_changed and first.is_noisy:
            is_same = become(first.control) == become(first.without)
            asked += f", and without random rows {'too' if is_same else become(first.control)}"
        return (
            f"{asked}. {changed} of {counted(len(compared), 'answer')} changed; without {random_rows} {noisy}: "
            "that much is the noise of any retraining."
        )


def view_proof(run: Run, proof: Proof) -> ProofView:
    """A proof with the present state of its runs; blocks, as it reads the queue and their records.

    A run is found by the questions in its configuration, also after the queue was cleared.

    Args:
        run: The original run.
        proof: One of its proofs.
    """
    try:
        known = {entry.id: entry for entry in store.read_queue().entries}
    except UserError:
        known = {}
    runs: list[Run] | None = None
    found = []
    titles = (f"without {counted(proof.count, 'row')}", f"without {counted(proof.count, 'random row')}")
    for title, number, left_out in zip(titles, proof.entries, (proof.rows, proof.control), strict=True):
        entry = known.get(number)
        if entry is not None and not any(_is_of(run, proof, text) for text in entry.overrides):
            entry = None  # of another queue
        made = run_of(entry) if entry is not None and entry.run is not None else None
        if made is None and entry is None:
            runs = list_runs() if runs is None else runs
            made = next((each for each in runs if _is_run_of(run, proof, left_out, each)), None)
        found.append(_proof_run(title, entry, made, len(proof.questions)))
    return ProofView(proof, *found)


def _is_of(run: Run, proof: Proof, text: str) -> bool:
    """True if a text ends in the path of a proof's questions."""
    return proof_path(text) == (run.id, proof.id)


def _is_run_of(run: Run, proof: Proof, left_out: Sequence[str], made: Run) -> bool:
    values = made.values()
    excluded = [*proof.before, *left_out]
    return values.get("data.exclude") == excluded and _is_of(run, proof, str(values.get("eval.prompts") or ""))


def _proof_run(title: str, entry: QueueEntry | None, made: Run | None, questions: int) -> ProofRun:
    if made is None or not made.config_path.is_file():
        if made is not None and (entry is None or entry.is_over):
            return ProofRun(title, "failed", words="its run was removed")
        if entry is None or entry.is_over:
            return ProofRun(title, "failed", words=(entry.reason if entry else "") or "it is no longer in the queue")
        if entry.state in ACTIVE:
            return ProofRun(title, "running", words="about to start")
        return ProofRun(title, "queued", words=f"entry {entry.id} of the queue is {entry.state}")
    state = made.state()
    if not state.is_over:
        within = f", step {state.step} of {state.total_steps}" if state.total_steps else ""
        return ProofRun(title, "running", made.id, f"{state.state}{within}")
    if state.state != "finished":
        reason = f" ({one_line(state.reason, 200)})" if state.reason else ""
        return ProofRun(title, "failed", made.id, f"its run {in_words(state.state)}{reason}")
    answers = _answers(made, questions)
    if len(answers) < questions:
        return ProofRun(title, "failed", made.id, "its run has no answers to the questions")
    return ProofRun(title, "done", made.id, "finished", answers)


def _answers(run: Run, questions: int) -> tuple[str, ...]:
    """The answers of a run's result, in the order of the questions."""
    history = read_history(run)
    step = history.end.result_step if history.end is not None else None
    steps = {sample.step for sample in history.samples}
    step = step if step in steps else max(steps, default=None)
    return tuple(sample.text for sample in history.samples if sample.step == step)[-questions:]
