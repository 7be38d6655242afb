"""``chat RUN|MODEL``: one answer, or a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import EXIT_USAGE, PROGRAM, add_json_flag, emit, fields, note, report_error, say
from core.errors import UserError

if TYPE_CHECKING:
    from core.chat.request import GenerationSettings, Source
    from core.chat.session import Answer, ChatSession
    from core.runs.record.store import Run

#: The most characters of a prompt that is piped in.
_PROMPT_LIMIT = 1 << 22
_HELP = (
    "/base, /tuned and /as RUN@STEP choose who answers, /again answers anew, /keep [FILE] appends the answer to a "
    "dataset, /correct ANSWER keeps a better one for 'continue --corrections', /alone asks each question alone or with "
    "what was said before, /clear begins a new conversation, /quit leaves; Ctrl-C cuts an answer short"
)
#: Flags of the sampling, by the settings that they change.
_FLAGS = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("target", metavar="RUN[@STEP]|MODEL")
    parser.add_argument("--prompt", metavar="TEXT")
    parser.add_argument("--base", action="store_true")
    parser.add_argument("--reader", choices=("llama",))
    parser.add_argument("--system", metavar="TEXT")
    parser.add_argument("--max-new-tokens", metavar="N", type=int)
    parser.add_argument("--temperature", metavar="T", type=float)
    parser.add_argument("--top-p", metavar="P", type=float)
    parser.add_argument("--top-k", metavar="K", type=int)
    parser.add_argument("--min-p", metavar="P", type=float)
    parser.add_argument("--repetition-penalty", metavar="X", type=float)
    parser.add_argument("--seed", metavar="N", type=int)
    parser.add_argument("--stop", metavar="TEXT", action="append")
    add_json_flag(parser, "print the answer to --prompt as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Answer ``--prompt`` or standard input, or hold a conversation."""
    prompt = _read_prompt(args)
    if prompt is None and args.json:
        note(f"{PROGRAM} chat: error: --json needs --prompt.")
        return EXIT_USAGE
    from core.chat.request import BASE, TUNED, GenerationSettings
    from core.chat.session import open_session
    from core.commands.live_line import LiveLine
    from core.config.schema import ChatSection
    from core.runs.record.store import Run

    target, step = find_target_at(args.target)
    run = target if isinstance(target, Run) else None
    defaults = run.config().chat if run is not None else ChatSection()
    settings = GenerationSettings.of(defaults, **{name: getattr(args, name) for name in _FLAGS})
    system = defaults.system if args.system is None else args.system
    session = open_session(target, step, llama=args.reader == "llama")
    if args.base and not session.has_tuned and run is not None:
        raise UserError(
            f"Run {run.id} trains the weights themselves, so it has no base to switch to.",
            f"Talk to the base alone: {PROGRAM} chat {run.config().model.base}",
        )
    try:
        with LiveLine() as line:
            session.prepare(line.loading)
        conversation = Conversation(session, settings, system, BASE if args.base else TUNED, run=run)
        if prompt is None:
            return conversation.hold()
        answer = conversation.ask(prompt, quiet=args.json)
        if args.json:
            emit(describe(answer))
        return 0
    finally:
        session.close()


def describe(answer: Answer) -> dict[str, Any]:
    """An answer, for ``--json``."""
    told = ("source", "tokens", "tokens_per_second", "first_token_seconds", "finish", "prompt_tokens", "context_limit")
    return {"answer": answer.text, **fields(answer, *told)}


def find_target_at(name: str) -> tuple[Run, int] | tuple[Run | Path | str, None]:
    """The target of ``RUN|MODEL``, and the checkpoint's step for ``RUN@STEP``.

    Raises:
        UserError: As :func:`find_target`, or if a step is given and there is no such run.
    """
    from core.runs.catalog.trained import split_step
    from core.runs.record.store import Run

    reference, step = split_step(name)
    target = find_target(reference)
    if step is None:
        return target, None
    if not isinstance(target, Run):
        raise UserError(f"There is no run {reference}, so it has no step {step}.", "'localtune-tui runs' lists them.")
    return target, step


def find_target(name: str) -> Run | Path | str:
    """The target of ``RUN|MODEL``: a run, the path of a model, or a model's name.

    Raises:
        UserError: If the name is empty or ambiguous.
    """
    from core.models.find import find_model
    from core.paths import user_path
    from core.runs.record.store import find_run, list_runs

    if not name.strip():
        raise UserError("No run and no model is named.", "Name one, or take 'latest' for the newest run.")
    path = user_path(name)
    # Not the methods of Path, which raise on names that are impossible for a file.
    exists = os.path.exists(path)
    if os.path.isfile(path / "run.toml"):
        return find_run(os.fspath(path.absolute()))
    if os.sep in name and exists:
        return path
    runs = [known.id for known in list_runs()]
    # A local model takes precedence over a run with the word in its id, but not over a run whose id is the word.
    if name == "latest" or name in runs:
        return find_run(name)
    if not exists and find_model(name) is not None:
        return name
    if any(name in known for known in runs):
        return find_run(name)
    return path if exists else name


class Conversation:
    """A conversation in one chat session.

    Args:
        session: The chat session that holds the model.
        settings: The sampling settings.
        system: The system prompt; empty for none.
        source: The name of the model that answers.
        run: The run that the conversation is kept with; None for a model alone.
    """

    def __init__(
        self, session: ChatSession, settings: GenerationSettings, system: str, source: Source, run: Run | None = None
    ) -> None:
        from core.chat.dialogue import Dialogue
        from core.chat.request import BASE

        self._session = session
        self._settings = settings
        self._system = system
        self._source: Source = source if session.has_tuned else BASE
        self._dialogue = Dialogue()
        self._run = run
        self._alone = False
        self._is_unkept = False

    def ask(self, prompt: str, *, quiet: bool = False, again: bool = False) -> Answer:
        """Ask a question and print the answer as it is generated.

        Args:
            prompt: The question; it and its answer join the conversation.
            quiet: Print nothing.
            again: Ask in the place of the last question, which stays as another branch.

        Raises:
            UserError: If the model cannot answer; the question is then forgotten.
            KeyboardInterrupt: On Ctrl-C; the answer is cut short and forgotten with its question.
        """
        from core.chat.dialogue import speaker_name
        from core.chat.session import Answer
        from core.commands.live_line import busy
        from core.text import one_line

        last = self._dialogue.exchanges[-1] if again else None
        if last is not None:
            exchange = self._dialogue.ask_again(last, prompt, (self._source,))
        else:
            exchange = self._dialogue.ask(prompt, (self._source,))
        exchange.alone = self._alone and len(self._dialogue.exchanges) > 1
        messages = self._dialogue.messages(self._source, self._system)
        answer: Answer | None = None
        waiting = contextlib.ExitStack()
        waiting.enter_context(busy("the model reads the question"))
        try:
            for piece in self._session.generate(messages, self._source, self._settings):
                waiting.close()
                if isinstance(piece, Answer):
                    answer = piece
                elif not quiet:
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
            if answer is None:
                raise UserError("The model gave no answer.", "Ask again.")
        except BaseException:
            self._session.cancel()
            self._dialogue.remove(exchange)
            raise
        finally:
            waiting.close()
        reply = exchange.replies[0]
        reply.take_answer(answer, alone=exchange.alone)
        reply.speaker = speaker_name(answer.source)
        self._keep()
        if not quiet:
            say("")
            note(f"{one_line(answer.source)} · {reply.stats}")
        return answer

    def _keep(self) -> None:
        """Save the conversation with its run; warn once if it cannot be written, and go on."""
        if self._run is None:
            return
        from core.chat.transcripts import keep_transcript

        try:
            keep_transcript(self._run, self._dialogue, self._system)
        except (OSError, UserError) as error:
            if not self._is_unkept:
                reason = getattr(error, "strerror", None) or str(error)
                note(f"warning: The conversation is not saved with the run: {reason.rstrip('.')}.")
            self._is_unkept = True

    def hold(self) -> int:
        """Ask and answer until the user leaves."""
        with contextlib.suppress(ImportError):  # some Pythons are built without it, and input() works all the same
            import readline  # noqa: F401 - gives input() line editing and history

        from core.chat.rows import look_up
        from core.commands.live_line import busy
        from core.text import one_line

        note(one_line(self._session.description))
        note(_HELP)
        with busy("reading the run's rows"):
            self._alone, _ = look_up(self._run)
        if self._alone:
            note("No row has a second turn, so each question is asked alone; /alone asks with what was said before.")
        while True:
            try:
                line = input("\n> ").strip()
            except EOFError:
                note("")
                return 0
            except KeyboardInterrupt:
                note("\n/quit leaves")
                continue
            if line in ("/quit", "/exit", "/q"):
                return 0
            if line.startswith("/"):
                self._obey(*line.split(maxsplit=1))
            elif line:
                self._answer(line)

    def _answer(self, line: str, *, again: bool = False) -> None:
        from core.chat.rows import look_up
        from core.text import sanitize

        try:
            self.ask(line, again=again)
            _, wanted = look_up(self._run, line)
            if wanted:
                note(f"wanted: {sanitize(wanted)}")
        except KeyboardInterrupt:
            note("\n(cut off)")
        except UserError as error:
            report_error(error)

    def _obey(self, command: str, rest: str = "") -> None:
        from core.chat.request import BASE, TUNED

        exchanges = self._dialogue.exchanges
        if command == "/base":
            self._source = BASE
            note("The base model answers.")
        elif command == "/tuned" and self._session.has_tuned:
            self._source = TUNED
            note("The tuned model answers.")
        elif command == "/tuned":
            note("Nothing was trained here; there is only the base model.")
        elif command == "/as" and rest:
            self._choose(rest)
        elif command == "/alone":
            self._alone = not self._alone
            note("Questions are asked alone." if self._alone else "Questions are asked with what was said before.")
        elif command == "/again" and exchanges:
            self._answer(exchanges[-1].question, again=True)
        elif command == "/keep" and exchanges:
            self._append(rest)
        elif command == "/correct" and exchanges and rest:
            self._correct(rest)
        elif command in ("/again", "/keep", "/correct") and not exchanges:
            note("No question has been asked yet.")
        elif command == "/clear":
            from core.chat.dialogue import Dialogue

            self._dialogue = Dialogue()
            note("New conversation.")
        else:
            note(_HELP)

    def _choose(self, reference: str) -> None:
        """Let a checkpoint or another run answer; a number alone is a step of the run."""
        from core.runs.catalog.trained import find_run_at, find_trained, reference_to

        is_step = reference.isascii() and reference.isdecimal() and len(reference) <= 18
        name = reference_to(self._run, int(reference)) if self._run and is_step else reference
        try:
            run, step = find_run_at(name)
            trained = find_trained(run, step)
        except UserError as error:
            report_error(error)
            return
        self._source = reference_to(run, step)
        note(f"{trained.label} answers.")

    def _correct(self, answer: str) -> None:
        """Keep an answer to the last question as a correction of the run."""
        from core.chat.corrections import Correction, corrections_file, keep_correction

        if self._run is None:
            note("Corrections are kept for a run; /keep appends to a dataset.")
            return
        reply = self._dialogue.exchanges[-1].replies[0]
        messages = tuple(self._dialogue.messages(reply.source, self._system))
        try:
            keep_correction(corrections_file(self._run), Correction(messages, answer, reply.as_written))
        except UserError as error:
            report_error(error)
            return
        note(f"Kept. '{PROGRAM} continue {self._run.id} --corrections' learns it.")

    def _append(self, name: str) -> None:
        """Append the last answer, with its conversation, to a file of rows."""
        from core.chat.answer_rows import append_row, remember_file, remembered_file
        from core.paths import user_path

        path = user_path(name) if name else remembered_file()
        if path is None:
            note("Name a file once; it is created if it does not exist: /keep answers.jsonl")
            return
        reply = self._dialogue.exchanges[-1].replies[0]
        messages = self._dialogue.messages(reply.source, self._system)
        try:
            append_row(path, [*messages, {"role": "assistant", "content": reply.as_written}])
        except UserError as error:
            report_error(error)
            return
        remember_file(path)
        note(f"Appended to {path}.")


def _read_prompt(args: argparse.Namespace) -> str | None:
    """The prompt from the command line or a pipe; None at an interactive terminal.

    Raises:
        UserError: If it is empty, or longer than any model reads.
    """
    prompt: str | None = args.prompt
    if prompt == "-" or (prompt is None and not args.json and not sys.stdin.isatty()):
        # A pipe may be endless.
        prompt = sys.stdin.read(_PROMPT_LIMIT + 1)
        if len(prompt) > _PROMPT_LIMIT:
            raise UserError(f"The prompt on standard input has more than {_PROMPT_LIMIT} characters.", "Shorten it.")
    if prompt is not None and not prompt.strip():
        raise UserError("The prompt is empty.", "Write it after --prompt, or pipe it in.")
    return prompt
