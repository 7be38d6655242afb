"""Chat requests, with the same arguments on the control socket and for the chat engine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from core.errors import UserError
from core.runs.control.protocol import QuestionError as QuestionError
from core.text import is_unicode, one_line

if TYPE_CHECKING:
    from core.config.schema import ChatSection

#: The model that answers: :data:`TUNED`, :data:`BASE`, or ``RUN`` or ``RUN@STEP`` for another adapter on the same base.
Source: TypeAlias = str
TUNED: Final = "tuned"
BASE: Final = "base"
_SOURCE = re.compile(r"[^\x00-\x1f\x7f]{1,4096}")
#: Most tokens of an answer.
MAX_NEW_TOKENS_LIMIT = 32768
#: Most texts that end an answer, and characters of one.
STOP_LIMIT, STOP_LENGTH = 16, 200
#: Most tokens with a bias.
BIAS_LIMIT = 300
_TOKEN = re.compile(r"[0-9]{1,9}")
ROLES = ("system", "user", "assistant", "tool")
#: Most messages in one conversation.
MESSAGE_LIMIT = 10_000
#: Most alternatives to a token that are returned with their log-probabilities.
LOGPROBS_LIMIT = 20
#: Longest JSON Schema of an answer, in characters.
SCHEMA_LIMIT = 1 << 16


class SettingError(UserError):
    """A setting that is out of range or of the wrong type.

    Args:
        name: Its name.
        wanted: The expected type or range.
    """

    def __init__(self, name: str, wanted: str) -> None:
        super().__init__(f"{name} must be {wanted}.", f"Change chat.{name}.")
        self.name = name


@dataclass(frozen=True)
class GenerationSettings:
    """Sampling settings of an answer.

    They act in this order: ``logit_bias``, repetition penalty, frequency and presence penalty, temperature, ``top_k``,
    ``top_p``, ``min_p``.
    """

    max_new_tokens: int = 256
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """Randomness; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Cumulative probability of the tokens that are sampled from, above 0 and at most 1."""
    top_k: int = 0
    """Number of likeliest tokens that are sampled from; 0 for all."""
    min_p: float = 0.0
    """Least probability of a token that is sampled, as a share of the likeliest one's, from 0 to below 1."""
    repetition_penalty: float = 1.0
    """Divisor of the logits of tokens already in the conversation; 1 for none."""
    seed: int | None = None
    """Seed of the draws; None for another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for each time that the answer has it already, from -2 to 2; 0 for none."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token once if the answer has it already, from -2 to 2; 0 for none."""
    logit_bias: Mapping[str, float] = field(default_factory=dict)
    """Added to the logits of tokens, from -100 to 100, by their numbers as text."""

    def __post_init__(self) -> None:
        limit = MAX_NEW_TOKENS_LIMIT
        fits = _is_int(self.max_new_tokens) and 1 <= self.max_new_tokens <= limit
        _check(fits, "max_new_tokens", f"a whole number from 1 to {limit}")
        _check(_is_number(self.temperature) and 0 <= self.temperature <= 5, "temperature", "a number from 0 to 5")
        _check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "a number above 0 and at most 1")
        _check(_is_int(self.top_k) and 0 <= self.top_k <= 1_000_000, "top_k", "a whole number from 0 to 1000000")
        _check(_is_number(self.min_p) and 0 <= self.min_p < 1, "min_p", "a number from 0 to below 1")
        penalty = self.repetition_penalty
        _check(_is_number(penalty) and 0 < penalty <= 10, "repetition_penalty", "a number above 0 and at most 10")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _check(_is_number(value) and -2 <= value <= 2, name, "a number from -2 to 2")
        seed = self.seed
        _check(seed is None or (_is_int(seed) and 0 <= seed < 1 << 32), "seed", "a whole number from 0 to 4294967295")
        bias = self.logit_bias
        fits = isinstance(bias, Mapping) and len(bias) <= BIAS_LIMIT and all(map(_is_bias, bias.items()))
        _check(fits, "logit_bias", f"at most {BIAS_LIMIT} numbers from -100 to 100, by numbers of tokens")
        object.__setattr__(self, "stop", _stops(self.stop))

    @classmethod
    def of(cls, chat: ChatSection, **changes: Any) -> GenerationSettings:
        """The settings of a configuration, with changes; a change of None is ignored.

        Raises:
            SettingError: If a change is of the wrong type or out of range.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        return cls(**(settings_of(chat) | given))

    @classmethod
    def from_args(cls, args: Mapping[str, Any]) -> GenerationSettings:
        """The settings among the arguments of a request; absent ones have the defaults.

        Raises:
            SettingError: If a value has the wrong type or is out of range.
        """
        return cls(**{name: args[name] for name in SETTING_NAMES if name in args})

    def biases(self, vocabulary: int) -> list[tuple[int, float]]:
        """Tokens with what is added to their logits.

        Raises:
            QuestionError: If one is not in the vocabulary.
        """
        found = [(int(token), bias) for token, bias in self.logit_bias.items()]
        if (last := max((token for token, _ in found), default=0)) >= vocabulary:
            raise QuestionError(f"logit_bias has the token {last}, and the model has {vocabulary}.", "Leave it out.")
        return found


SETTING_NAMES = tuple(each.name for each in fields(GenerationSettings))


def settings_of(chat: ChatSection) -> dict[str, Any]:
    """The sampling settings of a configuration, by the names of :class:`GenerationSettings`."""
    stop = chat.stop
    values = {name: getattr(chat, name) for name in SETTING_NAMES if name != "stop" and hasattr(chat, name)}
    return values | {"stop": () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)}


def too_long(tokens: int, limit: int) -> QuestionError:
    """The error for a conversation of more tokens than a model reads."""
    return QuestionError(
        f"The conversation has {tokens} tokens, and the model reads at most {limit}.",
        "Begin a new one, or remove earlier turns.",
        "context_length_exceeded",
    )


@dataclass(frozen=True)
class ChatRequest:
    """A question with the conversation before it."""

    messages: list[dict[str, Any]]
    """``role`` and ``content`` each, and with tools ``tool_calls``, ``name`` and ``tool_call_id``. An answer at the end
    is continued. Empty with a ``prompt``."""
    source: Source = TUNED
    """The model that answers: with its adapter, the base alone, or with another adapter, by its name."""
    settings: GenerationSettings = field(default_factory=GenerationSettings)
    tools: list[dict[str, Any]] = field(default_factory=list)
    """Tools that the answer may call, in OpenAI's schema."""
    prompt: str | list[int] | None = None
    """A text to continue, or its tokens, instead of a conversation."""
    json_schema: str | None = None
    """A JSON Schema that the answer follows, as JSON."""
    forced_tools: list[str] = field(default_factory=list)
    """Names of tools, of which the answer is a call; empty where the model chooses."""
    several_calls: bool = True
    """Such an answer may have more than one call."""
    logprobs: int | None = None
    """Number of likeliest tokens that each token comes with, with their log-probabilities; None for no figures."""
    echo: bool = False
    """The prompt comes before the answer, with its log-probabilities where they are asked for."""
    reads_only: bool = False
    """The prompt is echoed and nothing is written."""

    def __post_init__(self) -> None:
        if self.prompt is None:
            _check_messages(self.messages)
        else:
            _check_prompt(self.prompt, self.messages)
        if not isinstance(self.tools, list) or not all(isinstance(tool, dict) for tool in self.tools):
            raise UserError("Tools are a list of objects.")
        functions = [each for tool in self.tools if isinstance(each := tool.get("function"), dict)]
        names = [function.get("name") for function in functions]
        if not isinstance(self.forced_tools, list) or not all(name in names for name in self.forced_tools):
            raise UserError("A tool that the answer has to call is not among the tools.")
        if self.json_schema is not None and not isinstance(self.json_schema, str):
            raise UserError("The JSON Schema of an answer is given as a text.")
        if not isinstance(self.source, str) or not _SOURCE.fullmatch(self.source):
            raise UserError("The source of an answer is tuned or base, or the name of an adapter.")
        if self.logprobs is not None:
            fits = _is_int(self.logprobs) and 0 <= self.logprobs <= LOGPROBS_LIMIT
            _check(fits, "logprobs", f"a whole number from 0 to {LOGPROBS_LIMIT}")
        if self.echo and self.prompt is None:
            raise UserError("Only a prompt can be echoed, not a conversation.")

    @property
    def budget(self) -> int:
        """Most tokens of the answer."""
        return 0 if self.reads_only else self.settings.max_new_tokens

    def to_args(self) -> dict[str, Any]:
        """The arguments of a ``generate`` command."""
        args: dict[str, Any] = {"messages": [_packed(message) for message in self.messages], "source": self.source}
        if self.tools:
            # As a text: schemas are nested deeper than a message of the protocol may be.
            args["tools"] = json.dumps(self.tools)
        if self.prompt is not None:
            args["prompt"] = self.prompt
        if self.json_schema is not None:
            args["json_schema"] = self.json_schema
        if self.forced_tools:
            args |= {"forced_tools": self.forced_tools, "several_calls": self.several_calls}
        for name in ("logprobs", "echo", "reads_only"):
            if (value := getattr(self, name)) is not None and value is not False:
                args[name] = value
        return {**args, **asdict(self.settings)}

    @classmethod
    def from_args(cls, args: dict[str, Any]) -> ChatRequest:
        """Parse the arguments of a ``generate`` command; absent ones have the defaults.

        Raises:
            UserError: If a value has the wrong type or is out of range.
        """
        messages = args.get("messages", [])
        return cls(
            [_unpacked(message) for message in messages] if isinstance(messages, list) else messages,
            args.get("source", TUNED),
            GenerationSettings.from_args(args),
            tools=_parsed(args.get("tools", [])),
            prompt=args.get("prompt"),
            json_schema=args.get("json_schema"),
            forced_tools=args.get("forced_tools", []),
            several_calls=args.get("several_calls") is not False,
            logprobs=args.get("logprobs"),
            echo=args.get("echo", False) is True,
            reads_only=args.get("reads_only", False) is True,
        )


def _packed(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its calls as a text; their arguments may be nested deep."""
    calls = message.get("tool_calls")
    return message if calls is None else {**message, "tool_calls": json.dumps(calls)}


def _unpacked(message: Any) -> Any:
    if not isinstance(message, dict) or "tool_calls" not in message:
        return message
    return {**message, "tool_calls": _parsed(message["tool_calls"])}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError("Tools and calls of tools are not JSON.") from error


def _check_prompt(prompt: Any, messages: Any) -> None:
    is_ids = isinstance(prompt, list) and all(_is_int(token) and token >= 0 for token in prompt)
    if not (isinstance(prompt, str) or is_ids) or not prompt or messages:
        raise UserError("A prompt is a text or a list of tokens, is not empty, and has no conversation beside it.")
    if isinstance(prompt, str) and not is_unicode(prompt):
        raise UserError("The prompt holds half a character, which no model can read.", "Remove it and ask again.")


def _check_messages(messages: Any) -> None:
    """Refuse messages that no model could answer."""
    if not isinstance(messages, list) or not messages:
        raise UserError("A conversation needs at least one message.", "Write one.")
    if len(messages) > MESSAGE_LIMIT:
        raise UserError(
            f"The conversation has {len(messages)} messages; at most {MESSAGE_LIMIT} are read.",
            "Leave the earliest out.",
        )
    for message in messages:
        if (
            not isinstance(message, dict)
            or message.get("role") not in ROLES
            or not isinstance(message.get("content"), str)
        ):
            raise UserError(f"A message needs a content that is text, and a role: {', '.join(ROLES)}.")
        if not is_unicode(message["content"]):
            raise UserError("A message holds half a character, which no model can read.", "Remove it and ask again.")
        _check_calls(message)
    if messages[-1].get("tool_calls"):
        raise UserError("The conversation ends with a call of a tool.", "Add what the tool returned.")


def _check_calls(message: dict[str, Any]) -> None:
    """Refuse calls of tools that no template could render."""
    calls = message.get("tool_calls", [])
    well_formed = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(function := call.get("function"), dict) and "arguments" in function
        for call in calls
    )
    others = (message.get(name, "") for name in ("name", "tool_call_id", "reasoning_content"))
    if not well_formed or not all(isinstance(value, str) for value in others):
        raise UserError("A message has calls of tools, or a name, in a form that no template reads.")


def _check(fits: bool, name: str, wanted: str) -> None:
    if not fits:
        raise SettingError(name, wanted)


def _stops(stop: Any) -> tuple[str, ...]:
    stop = (stop,) if isinstance(stop, str) else stop
    if (
        not isinstance(stop, (list, tuple))
        or len(stop) > STOP_LIMIT
        or not all(isinstance(text, str) and 0 < len(text) <= STOP_LENGTH and is_unicode(text) for text in stop)
    ):
        wanted = f"a text, or a list of at most {STOP_LIMIT}, of 1 to {STOP_LENGTH} characters each"
        raise SettingError("stop", wanted)
    return tuple(stop)


def _is_bias(item: tuple[Any, Any]) -> bool:
    token, bias = item
    return isinstance(token, str) and bool(_TOKEN.fullmatch(token)) and _is_number(bias) and -100 <= bias <= 100


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


#: llguidance's reason against a schema with keywords, or formats of strings, that it lacks.
_LACKING = re.compile(r"(?:Unimplemented keys|Unknown format): (.*)")


def grammar_of(schema: str) -> str:
    """The grammar of a JSON Schema for an answer, for ``llguidance.LLMatcher``.

    Args:
        schema: The schema, as JSON.

    Raises:
        QuestionError: If no answer can be held to it: it is invalid, too large, or uses features that llguidance lacks;
            or llguidance is not installed.
    """
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise QuestionError(
            "Answers in a JSON Schema need llguidance, which is not installed.",
            "Install it with the app: pip install 'localtune-tui[serve]'",
        ) from error
    from core.template.tool_call_grammar import COMPACT_JSON

    if len(schema) > SCHEMA_LIMIT:
        raise QuestionError(f"The JSON Schema has more than {SCHEMA_LIMIT >> 10} KiB.", "Ask with a smaller one.")
    try:
        options: Any = dict(COMPACT_JSON)
        grammar = str(LLMatcher.grammar_from_json_schema(schema, overrides=options))
        problem = LLMatcher.validate_grammar(grammar, None)
    except ValueError as error:
        grammar, problem = "", str(error)
    if problem:
        lacking = _LACKING.search(problem)
        hint = "Ask with another one."
        if lacking is not None:
            names = ", ".join(re.findall(r"[\w$-]+", lacking[1]))
            hint = f"Leave {names} out, or send 'strict': false, which holds the answer to the rest."
        raise QuestionError(f"The JSON Schema cannot be followed: {reason_of(problem)}.", hint)
    return grammar


def reason_of(problem: str) -> str:
    """llguidance's reason, on one line and without a full stop.

    It is the first line; the library's own state follows. If that line is a heading, as for a regular
    expression, the reason is in the line that begins with ``error:``.
    """
    first, *others = problem.strip().splitlines() or [""]
    if first.endswith(":"):
        first += next((line.removeprefix("error:") for line in others if line.startswith("error:")), "")
    return one_line(" ".join(first.split()), 300).rstrip(".:")
