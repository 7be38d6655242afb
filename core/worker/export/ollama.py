"""An export for Ollama: a Modelfile beside the GGUF file; if Ollama is installed, the model is created and asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from core.chat.request import GenerationSettings
from core.config.schema import Config
from core.directories import Progress
from core.errors import UserError
from core.export.ollama.create import ask, create, find_ollama, model_name
from core.export.ollama.modelfile import adds_bos, modelfile
from core.export.ollama.template import carry_template
from core.export.request import Quant
from core.models.description import read_description, text_part
from core.runs.catalog.trained import TrainedModel
from core.small_files import read_small
from core.text import one_line
from core.worker.export.beside import Conversation

MODELFILE = "Modelfile"
#: Default tokens of context; Ollama reserves memory for all of them, and models name up to a million.
_CONTEXT = 8192
#: Training rows that the template is checked on.
_ROWS = 200
_LICENSE_LIMIT = 256 << 10
_QUESTION = "Hello!"


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


def create_and_ask(directory: Path, trained: TrainedModel, quant: Quant, progress: Progress) -> tuple[str, ...]:
    """Create the model in Ollama, if installed, and ask it once. A failure is reported, and the files stay.

    Returns:
        The result, in sentences.
    """
    if find_ollama() is None:
        return ()
    name = model_name(trained.run.id, step=trained.step, quant=quant)
    progress("creating the model in Ollama", None, None)
    try:
        create(name, directory, progress)
        progress("asking the model in Ollama", None, None)
        answer = ask(name, _QUESTION)
    except UserError as error:
        return (f"Ollama was not given the model: {error}",)
    return (f'Ollama has it as {name}; asked "{_QUESTION}" it answers: {one_line(answer, 200) or "nothing"}',)


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
