"""Built-in chat templates, by name, for base models without one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UserError
from core.small_files import read_small

#: Largest template in bytes. Models have up to a hundred thousand; a megabyte takes minutes to compile.
TEMPLATE_LIMIT = 256 << 10

_DIRECTORY = Path(__file__).with_name("named")


@dataclass(frozen=True)
class NamedTemplate:
    """A built-in chat template.

    Args:
        name: As in ``template.name``.
        about: Description in a few words.
        stops: Texts of the tokens that end an answer, if not the end-of-text token of the tokenizer.
    """

    name: str
    about: str
    stops: tuple[str, ...] = ()
    source: str = field(init=False, repr=False)
    """The Jinja template, from ``named/NAME.jinja`` without the final line break."""

    def __post_init__(self) -> None:
        # At once, since a confined process may not read files later.
        source = (_DIRECTORY / f"{self.name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
        object.__setattr__(self, "source", source)


#: All built-in templates, in display order.
NAMED_TEMPLATES: dict[str, NamedTemplate] = {
    template.name: template
    for template in (
        NamedTemplate("chatml", "ChatML: <|im_start|>role … <|im_end|>", ("<|im_end|>",)),
        NamedTemplate("qwen", "ChatML with a default system prompt", ("<|im_end|>",)),
        NamedTemplate("llama3", "Llama 3: headers, <|eot_id|>", ("<|eot_id|>",)),
        NamedTemplate("mistral", "Mistral: [INST] … [/INST]"),
        NamedTemplate("gemma", "Gemma: <start_of_turn> … <end_of_turn>", ("<end_of_turn>",)),
        NamedTemplate("phi3", "Phi 3: <|role|> … <|end|>", ("<|end|>",)),
        NamedTemplate("zephyr", "Zephyr: <|role|> …, the model's own end of text"),
        NamedTemplate("alpaca", "Alpaca: ### Instruction, ### Response; needs no tokens of its own"),
        NamedTemplate("vicuna", "Vicuna: USER, ASSISTANT; needs no tokens of its own"),
    )
}


def stop_texts(source: str) -> tuple[str, ...]:
    """Stop texts of a built-in template, by its source; empty for other templates."""
    return next((template.stops for template in NAMED_TEMPLATES.values() if template.source == source), ())


def named_or_file(template: str | None) -> str | None:
    """Text of the template that a run was trained with, or None for the model's own.

    Args:
        template: Name of a built-in template, or path of a Jinja file.

    Raises:
        UserError: If the file cannot be read.
    """
    named = template in NAMED_TEMPLATES
    return template_source(None if named else template, template if named else None)


def template_source(file: str | None, name: str | None) -> str | None:
    """Text of the configured template, or None for the model's own.

    Args:
        file: ``template.file``.
        name: ``template.name``.

    Raises:
        UserError: If both are given, the file cannot be read or the name is unknown.
    """
    if file is not None and name is not None:
        raise UserError("template.file and template.name are both set.", "Remove one of them.")
    if name is not None:
        if name not in NAMED_TEMPLATES:
            raise UserError(f"There is no template called {name}.", f"There are {', '.join(NAMED_TEMPLATES)}.")
        return NAMED_TEMPLATES[name].source
    if file is None:
        return None
    try:
        return read_small(file, TEMPLATE_LIMIT).decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"template.file {file} cannot be read: {reason}.", "Check the path.") from error
