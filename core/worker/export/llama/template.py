"""The chat template in a GGUF file, rendered in our own sandbox of Jinja, as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from core.chat.request import QuestionError
from core.data.conversation import RowError
from core.errors import UserError
from core.sandbox.limits import growth_limit
from core.template.render import ChatTemplate
from core.worker.export.llama.model import GgufModel


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
            UserError: If it takes more time than any should.
        """
        with growth_limit():
            return self._template.render(messages, tools=tools, add_generation_prompt=True)

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The same, for a conversation of a user.

        Raises:
            QuestionError: If the template refuses it.
            UserError: As :meth:`render`.
        """
        try:
            return self.render(messages, tools)
        except RowError as error:
            raise QuestionError(error.message, "Change the conversation.") from error
