"""Modelfiles for a GGUF file: https://docs.ollama.com/modelfile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core.chat.request import GenerationSettings
from core.config.schema import Config
from core.errors import UserError
from core.models.architecture.gguf_header import read_gguf_header
from core.models.description import read_description, text_part
from core.runs.catalog.trained import TrainedModel
from core.small_files import read_small
from core.text import one_line
from core.worker.export.model_directory import Conversation
from core.worker.export.ollama.go_template import lost_character
from core.worker.export.ollama.template import carry_template

#: Tokenizers for which llama.cpp always adds the token.
_FORCED = ("gemma4", "lfm2")
_AGAIN = "Export the GGUF file again."


def adds_bos(gguf: Path) -> bool:
    """True if the reader of a GGUF file puts the BOS token before every prompt.

    Raises:
        UserError: If the file cannot be read, does not say, or has an end-of-text token added to prompts as well.
    """
    metadata = read_gguf_header(gguf).metadata
    if metadata.get("tokenizer.ggml.add_eos_token") is True:
        raise UserError(f"{one_line(str(gguf))} has the end of text added to every prompt, which ends it.", _AGAIN)
    if metadata.get("tokenizer.ggml.pre") in _FORCED or metadata.get("tokenizer.ggml.model") == "gemma4":
        return True
    found = metadata.get("tokenizer.ggml.add_bos_token")
    if isinstance(found, bool):
        return found
    if metadata.get("tokenizer.ggml.model") == "llama":
        # All readers agree on this default.
        return True
    raise UserError(
        f"{one_line(str(gguf))} does not say whether a token is put before every prompt (add_bos_token), and readers "
        "differ in what they take it for.",
        _AGAIN,
    )


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile, and its differences from training."""

    text: str
    notes: tuple[str, ...]
    """Differences from training in Ollama, a sentence each."""


def modelfile(
    gguf_name: str,
    template: str,
    *,
    bos: str | None,
    eos: str | None,
    adds_bos: bool,
    stops: Sequence[str] = (),
    context_length: int | None = None,
    system: str = "",
    parameters: Mapping[str, float] = MappingProxyType({}),
    license: str = "",  # noqa: A002 - as the command is called
    now: datetime | None = None,
    rows: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> Modelfile:
    """The Modelfile of a GGUF file in the same directory, with the chat template that training used.

    Args:
        gguf_name: The file's name, without a directory.
        template: The Jinja template.
        bos: Text of the token at the beginning of a sequence, if the tokenizer has one.
        eos: Text of the token at the end of a text, if the tokenizer has one.
        adds_bos: True if the reader of the GGUF file puts ``bos`` before each prompt; see
            :func:`core.worker.export.ollama.modelfile.adds_bos`.
        stops: Texts of the tokens that end an answer.
        context_length: Longest prompt with its answer, in tokens; Ollama's default if None.
        system: System prompt for conversations without one.
        parameters: Sampling by Ollama's names: ``temperature``, ``top_p``, ``top_k`` and so on.
        license: Text of the license.
        now: The fixed date of a template that writes one, from the run's start; None refuses such templates.
        rows: Conversations of the user's data to prove the template on as well; see
            :func:`core.worker.export.ollama.template.carry_template`.

    Raises:
        UserError: If the template cannot be carried over exactly, with the construct; or a text cannot be written.
    """
    special = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    carried = carry_template(template, special, adds_bos=adds_bos, now=now, rows=rows)
    if system and carried.system in ("ignored", "refused"):
        fate = "leaves a system prompt out" if carried.system == "ignored" else "refuses a system prompt"
        raise UserError(f"The chat template {fate}, so the Modelfile cannot have one.", "Export without it.")
    notes = list(carried.notes)
    lines = [f"FROM {_file_name(gguf_name)}", f"TEMPLATE {_quoted(carried.text, 'The chat template')}"]
    if system:
        lines.append(f"SYSTEM {_quoted(system, 'The system prompt')}")
    for stop in dict.fromkeys(filter(None, stops)):
        lines.append(f"PARAMETER stop {_quoted(stop, 'A stop text')}")
    if context_length is not None:
        lines.append(f"PARAMETER num_ctx {context_length}")
    lines += [f"PARAMETER {name} {_number(value)}" for name, value in parameters.items()]
    if license.strip():
        text = _without_lost(license)
        if '"""' in text:
            notes.append('The license is not in the Modelfile: its text has """ in it. It lies beside the model.')
        else:
            lines.append(f'LICENSE """{text}"""')
    return Modelfile("\n".join(lines) + "\n", tuple(notes))


def _file_name(name: str) -> str:
    if not name or "/" in name or name != name.strip() or not name.isprintable():
        raise UserError(f"{one_line(name, 80)!r} cannot be named in a Modelfile.", "Give the file a plain name.")
    return f"./{name}"


def _quoted(text: str, name: str) -> str:
    """A text in quotes that Ollama reads back unchanged.

    Raises:
        UserError: If it would not.
    """
    lost = lost_character(text)
    if lost is not None:
        raise UserError(
            f"{name} has the character U+{ord(lost):04X}, which Ollama leaves out of a Modelfile.",
            "Use a text without it.",
        )
    if '"""' in text:
        raise UserError(f'{name} has """ in it, which ends a text in a Modelfile.', "Use a text without it.")
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return format(value, "f").rstrip("0").rstrip(".") if abs(value) >= 1e-6 or not value else repr(value)


def _without_lost(text: str) -> str:
    """A license without the characters that Ollama loses: page breaks, spaces that do not break."""
    kept = text.replace("\r\n", "\n").strip()
    return "".join(c if lost_character(c) is None else " " if c.isspace() else "" for c in kept)


MODELFILE = "Modelfile"
#: Default tokens of context; Ollama reserves memory for all of them, and models name up to a million.
_CONTEXT = 8192
#: Training rows that the template is checked on.
_ROWS = 200
_LICENSE_LIMIT = 256 << 10


def check_carried(conversation: Conversation) -> None:
    """Reject a chat template that a Modelfile cannot express, before minutes are spent on the GGUF file.

    Raises:
        UserError: If it cannot be expressed; the message names the construct.
    """
    special = {"bos_token": conversation.bos, "eos_token": conversation.eos}
    refused = None
    # Only the finished file decides about the BOS token before prompts.
    for adds in (True, False):
        try:
            carry_template(_template(conversation), special, adds_bos=adds, now=datetime.now())
        except UserError as error:
            refused = error
        else:
            return
    if refused is not None:
        raise refused


def write_modelfile(
    gguf: Path,
    base: Path,
    trained: TrainedModel,
    conversation: Conversation,
    license_name: str,
    rows: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[str, ...]:
    """Write the Modelfile of a GGUF file, beside it.

    Args:
        gguf: The file.
        base: The directory of the base.
        trained: The trained model.
        conversation: Template and stop tokens.
        license_name: The license of the base; empty where unknown.
        rows: Training conversations, which the template must render as in training.

    Returns:
        Differences from training in Ollama, a sentence each.

    Raises:
        UserError: If the chat template cannot be expressed, or the file does not say how prompts begin.
        OSError: If it cannot be written.
    """
    config = trained.config
    settings = GenerationSettings.of(config.chat)
    written = modelfile(
        gguf.name,
        _template(conversation),
        bos=conversation.bos,
        eos=conversation.eos,
        adds_bos=adds_bos(gguf),
        stops=(*conversation.stops, *settings.stop),
        context_length=_context(base, config),
        system=config.chat.system,
        parameters=_sampling(settings),
        license=_license(base) or license_name,
        now=datetime.now(),
        rows=rows[:_ROWS],
    )
    (gguf.parent / MODELFILE).write_text(written.text, encoding="utf-8")
    return written.notes


def _sampling(settings: GenerationSettings) -> dict[str, float]:
    """Sampling settings by Ollama's names; all of them, as Ollama's defaults differ."""
    named = {
        "temperature": settings.temperature,
        "top_k": settings.top_k,
        "top_p": settings.top_p,
        "min_p": settings.min_p,
        "repeat_penalty": settings.repetition_penalty,
    }
    return named if settings.seed is None else {**named, "seed": settings.seed}


def _template(conversation: Conversation) -> str:
    if conversation.template is None:
        raise UserError(
            "The model has no chat template, and Ollama needs one.", "Export it as gguf, or train with template.name."
        )
    return conversation.template


def _context(base: Path, config: Config) -> int | None:
    """Tokens of context: as many as the model reads, up to a default or the longest row of the training."""
    positions = text_part(read_description(base / "config.json") or {}).get("max_position_embeddings")
    if type(positions) is not int or positions < 1:
        return None
    return min(positions, max(_CONTEXT, config.train.max_length))


def _license(base: Path) -> str:
    """The text of the base's license; empty without one."""
    for path in sorted(base.glob("LICENSE*")):
        try:
            return read_small(path, _LICENSE_LIMIT).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return ""
