"""Preflight checks: reasons to refuse a run before its model is loaded; ``data.allow`` lists the codes to let pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from core.analysis.division import digest, normalized
from core.analysis.problems import kind_of
from core.config.choices import RefusalCode
from core.data.conversation import Example
from core.errors import UserError

#: Greatest share of rows without any trained token.
NOTHING_SUPERVISED_SHARE = 0.1
#: Least share of conversations in which the token that ends an answer is trained on.
STOP_LEARNED_SHARE = 0.5
#: Greatest share of held-out rows that are also trained on.
EVAL_LEAK_SHARE = 0.05

#: Receives code, message and hint of an allowed finding.
Notice = Callable[[str, str, str], None]


class Preflight:
    """Refuses a run, or reports the finding if the user has allowed it.

    Args:
        allowed: Codes of ``data.allow``.
        notice: Receives findings that are allowed.
    """

    def __init__(self, allowed: Collection[RefusalCode] = (), notice: Notice = lambda *_: None) -> None:
        self._allowed = allowed
        self._notice = notice

    def refuse(self, code: RefusalCode, message: str, hint: str) -> None:
        """Refuse the run, unless the code is allowed.

        Args:
            code: Code of the finding.
            message: The finding in one sentence.
            hint: Remedy, with the configuration key.

        Raises:
            UserError: If it is not allowed.
        """
        if code not in self._allowed:
            raise UserError(message, f'{hint} To train anyway: --allow {code}, or data.allow = ["{code}"].')
        self._notice(code, message, f"It goes on, as data.allow holds {code}.")

    def check_format(self, name: str, ambiguity: str) -> None:
        """Refuse rows with an ambiguous format.

        Args:
            name: Name of the rows in the configuration.
            ambiguity: Result of :func:`~core.data.formats.detect.find_ambiguity`.

        Raises:
            UserError: If they are ambiguous and that is not allowed.
        """
        if ambiguity:
            self.refuse(
                "format_ambiguous",
                f"How {name} is read is not clear: {ambiguity}",
                "Say it with data.format, or split it.",
            )

    def check_template(self, base: str) -> None:
        """Refuse conversations for a model that has no chat template.

        Args:
            base: Name of the model in the configuration.

        Raises:
            UserError: If that is not allowed.
        """
        self.refuse(
            "template_missing",
            f"{base} has no chat template, so conversations cannot be rendered.",
            "Set template.name (alpaca and vicuna suit every tokenizer) or template.file, or take an "
            "instruction-tuned model.",
        )

    def check_supervised(self, read: int, nothing: int, example: str) -> None:
        """Refuse a dataset if too many rows have no trained token.

        Args:
            read: Rows read.
            nothing: Rows without a trained token.
            example: A sentence about the first of them.

        Raises:
            UserError: If there are too many and that is not allowed.
        """
        if nothing > NOTHING_SUPERVISED_SHARE * read:
            self.refuse(
                "nothing_supervised",
                f"{nothing} of {read} rows have nothing to learn, more than "
                f"{_percent(NOTHING_SUPERVISED_SHARE)}. {example}".rstrip(),
                "See data.supervise, the train flags of the messages and train.max_length.",
            )

    def check_stop(self, conversations: int, stopped: int) -> None:
        """Refuse conversations that do not teach the model to end its answers.

        Args:
            conversations: Conversations and tokenized rows, including rows dropped for the lack of a stop token; plain
                text need not end.
            stopped: Rows of them in which the token that ends an answer is trained on.

        Raises:
            UserError: If there are too few and that is not allowed.
        """
        if conversations and stopped < STOP_LEARNED_SHARE * conversations:
            self.refuse(
                "stop_untrained",
                f"The token that ends an answer is learned in {stopped} of {conversations} rows, less than "
                f"{_percent(STOP_LEARNED_SHARE)}: the model would not learn to stop.",
                "Raise train.max_length where answers are cut, name a template that ends them in template.name, "
                "or let the labels take the token in.",
            )

    def tell_ended(self, answers: int) -> None:
        """Report answers with an appended end-of-text token, which needs ``stop_untrained`` in ``data.allow``.

        Args:
            answers: Number of answers that the chat template does not end with a stop token.
        """
        if answers:
            self.refuse(
                "stop_untrained",
                f"The chat template ends {answers} answers with no token that stops the model; the end of text was put "
                "behind each.",
                "Name a template that ends answers in template.name or template.file.",
            )

    def tell_marked(self, rows: int) -> None:
        """Report rows with an end mark at the end of an answer, which is left out."""
        if rows:
            mark = "1 row has an end mark" if rows == 1 else f"{rows} rows have an end mark"
            self._notice("end_mark", f"{mark} at the end of an answer.", kind_of("end_mark").hint)

    def tell_excluded(self, places: str) -> None:
        """Report rows of ``data.exclude`` that are held out.

        Args:
            places: The rows, in words.
        """
        message = f"data.exclude names rows that are held out, and measured all the same: {places}."
        self._notice("excluded_held_out", message, kind_of("excluded_held_out").hint)

    def tell_alike(self) -> None:
        """Report near duplicates of held-out rows among the rows trained on, for lack of other rows."""
        self._notice(
            "near_leak",
            "So many rows are almost the same that some like those held out are trained on.",
            "Give a file of other rows in data.eval; 'localtune-tui data --config CONFIG' lists them as near_leaked.",
        )

    def check_leak(self, train: Iterable[Example], held_out: Iterable[Example]) -> None:
        """Refuse held-out rows that are also trained on, regardless of case and whitespace.

        Raises:
            UserError: If there are too many and that is not allowed.
        """
        keys = [digest(example, normalized(example)) for example in held_out]
        wanted = set(keys)
        trained = wanted & {digest(example, normalized(example)) for example in train} if wanted else wanted
        leaked = sum(key in trained for key in keys)
        if not leaked:
            return
        share = leaked / len(keys)
        hint = "Remove them from data.train or data.eval; 'localtune-tui data --config CONFIG' lists them as leaked."
        if share > EVAL_LEAK_SHARE:
            self.refuse(
                "eval_leak",
                f"{leaked} of {len(keys)} held-out rows ({_percent(share)}) are also trained on, more than "
                f"{_percent(EVAL_LEAK_SHARE)}: what is measured would be memory.",
                hint,
            )
        else:
            self._notice("eval_leak", f"{leaked} of {len(keys)} held-out rows are also trained on.", hint)


def _percent(share: float) -> str:
    return f"{share:.0%}"
