"""Chat requests: the same arguments on the control socket and for the chat engine."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from core.errors import UserError

Source = Literal["tuned", "base"]
ROLES = ("system", "user", "assistant")
#: Most messages in one conversation.
MESSAGE_LIMIT = 10_000


@dataclass(frozen=True)
class GenerationSettings:
    """Sampling settings of an answer."""

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """Randomness; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Cumulative probability of the tokens that are sampled from, above 0 and at most 1."""

    def __post_init__(self) -> None:
        if not _is_int(self.max_new_tokens) or not 1 <= self.max_new_tokens <= 32768:
            raise UserError("max_new_tokens must be a whole number from 1 to 32768.", "Change chat.max_new_tokens.")
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 5:
            raise UserError("temperature must be a number from 0 to 5.", "Change chat.temperature.")
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise UserError("top_p must be a number above 0 and at most 1.", "Change chat.top_p.")


@dataclass(frozen=True)
class ChatRequest:
    """A question with the conversation before it."""

    messages: list[dict[str, str]]
    """``role`` and ``content`` each, the last one the user's."""
    source: Source = "tuned"
    """The model that answers: with its adapter, or the base alone."""
    settings: GenerationSettings = field(default_factory=GenerationSettings)

    def __post_init__(self) -> None:
        _check_messages(self.messages)
        if self.source not in ("tuned", "base"):
            raise UserError("The source of an answer is tuned or base.")

    def to_args(self) -> dict[str, Any]:
        """The arguments of a ``generate`` command."""
        return {"messages": self.messages, "source": self.source, **asdict(self.settings)}

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> ChatRequest:
        """Parse the arguments of a ``generate`` command; absent ones have the defaults.

        Raises:
            UserError: If one of them is of the wrong type or out of range.
        """
        defaults = GenerationSettings()
        settings = GenerationSettings(
            max_new_tokens=args.get("max_new_tokens", defaults.max_new_tokens),
            temperature=args.get("temperature", defaults.temperature),
            top_p=args.get("top_p", defaults.top_p),
        )
        return cls(args.get("messages", []), args.get("source", "tuned"), settings)


def _check_messages(messages: Any) -> None:
    """Refuse messages that no model could answer."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MESSAGE_LIMIT:
        raise UserError("A conversation needs at least one message.", "Write one.")
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise UserError(f"A message needs a content that is text, and a role: {', '.join(ROLES)}.")
        if not _is_encodable(message["content"]):
            raise UserError("A message holds half a character, which no model can read.", "Remove it and ask again.")
    if messages[-1]["role"] != "user":
        raise UserError("The last message of the conversation must be the user's.", "Write one.")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))
