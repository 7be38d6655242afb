"""The chat template in a GGUF file, rendered in our own sandbox of Jinja, as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from core.data.conversation import RowError
from core.errors import UserError
from core.sandbox.limits import TimeLimitError, cpu_limit, growth_limit
from core.template.render import ChatTemplate
from core.worker.export.llama.model import GgufModel

#: Processor time of a rendering; a thousandth of a second is usual.
_SECONDS = 20


class GgufTemplate:
    """The chat template of a file with the special tokens of its vocabulary.

    Args:
        model: The loaded file.
        now: Time for templates that write the date; None for the present.

    Raises:
        UserError: If the file has none, or it is not valid.
    """

    def __init__(self, model: GgufModel, now: datetime | None = None) -> None:
        source = model.templates.get("default")
        if not source:
            raise UserError(f"{model.path} has no chat template.", "Export it again, with the template of the run.")
        self._template = ChatTemplate(source, model.specials, with_tools=model.templates.get("tool_use"), now=now)
        self._template.check()

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """A conversation as text, ready for the model to answer.

        Raises:
            RowError: If the template refuses it.
            UserError: If it takes more time or memory than any should.
        """
        hint = "Take another template (template.file), and export again."
        try:
            with growth_limit(), cpu_limit(_SECONDS, kills=False):
                return self._template.render(messages, tools=tools, add_generation_prompt=True)
        except TimeLimitError as error:
            raise UserError(f"The chat template takes more than {_SECONDS} s for a conversation.", hint) from error
        except MemoryError as error:
            raise UserError("The chat template needs more memory than it may have.", hint) from error

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The same, for a conversation of a user.

        Raises:
            UserError: If the template refuses it.
        """
        try:
            return self.render(messages, tools)
        except RowError as error:
            raise UserError(error.message, "Change the conversation.") from error
