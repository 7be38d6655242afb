"""What of the configuration decides how rows become tokens, and the model directory that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.document import ConfigDocument
from core.config.schema import find_option
from core.data.analysis import AnalysisRequest
from core.errors import UserError
from core.hub.entries import absolute
from core.models.find import STARTER_NAME, find_model, missing_model
from core.paths import user_path
from core.template.mask import Masker
from core.template.named import template_source
from core.template.render import ChatTemplate
from core.template.tokenizer import load_tokenizer
from tui.data_paths import entry_text


@dataclass(frozen=True)
class TokenPlan:
    """The options behind the tokens of a row; what is invalid in the file has its default here."""

    base: str
    directory: Path
    """What relative paths in the configuration are relative to."""
    template_name: str | None = None
    template_file: Path | None = None
    supervise: Any = "assistant"
    keep_special: bool = False
    max_length: int = 2048


@dataclass(frozen=True)
class ReadPlan:
    """How the configuration has rows read and counted, for the files that it names."""

    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    format: str = "auto"
    columns: tuple[tuple[str, str], ...] | None = None
    overlong: Any = "drop"


def _value(document: ConfigDocument, name: str, wanted: type | tuple[type, ...]) -> Any:
    option = find_option(name)
    value = document.get(name)
    fits = isinstance(value, wanted) and not isinstance(value, bool)
    if fits and option is not None and option.choices and isinstance(value, str):
        fits = value in option.choices
    return value if fits else option.default if option is not None else None


def plan_tokens(document: ConfigDocument) -> TokenPlan:
    """What a configuration says about tokens."""
    directory = document.path.parent.absolute() if document.path is not None else Path.cwd()
    file = _value(document, "template.file", str)
    return TokenPlan(
        base=_value(document, "model.base", str),
        directory=directory,
        template_name=_value(document, "template.name", str),
        template_file=directory / user_path(file) if file else None,
        supervise=_value(document, "data.supervise", str),
        keep_special=_value(document, "data.special_tokens", str) == "keep",
        max_length=_value(document, "train.max_length", int),
    )


def plan_reading(document: ConfigDocument) -> ReadPlan:
    """What a configuration says about reading; paths become absolute."""
    directory = document.path.parent.absolute() if document.path is not None else Path.cwd()

    def entries(name: str) -> tuple[str, ...]:
        value = document.get(name)
        items = value if isinstance(value, list) else [value]
        return tuple(absolute(item, directory) for item in items if isinstance(item, str) and item)

    columns = document.get("data.columns")
    return ReadPlan(
        train=entries("data.train"),
        eval=entries("data.eval"),
        format=_value(document, "data.format", str),
        columns=tuple((str(key), str(item)) for key, item in columns.items()) if isinstance(columns, Mapping) else None,
        overlong=_value(document, "data.overlong", str),
    )


def find_base(base: str, directory: Path) -> Path:
    """The directory of a base model, if it is ready.

    Raises:
        UserError: If there is none; the hint says what makes it ready.
    """
    if (found := find_model(base, directory)) is not None:
        return found
    missing = missing_model(base, directory)
    hint = (
        "Press 3, then d: the sample run prepares it; or run 'localtune-tui demo'."
        if base == STARTER_NAME
        else missing.hint
    )
    raise UserError(f"There are no tokens to show. {missing.message}", hint)


def make_masker(plan: TokenPlan) -> Masker:
    """Tokenizer and template of a plan; slow the first time.

    Raises:
        UserError: If one of them is not there or cannot be read.
    """
    tokenizer = load_tokenizer(find_base(plan.base, plan.directory))
    source = template_source(str(plan.template_file) if plan.template_file else None, plan.template_name)
    template = ChatTemplate(source, tokenizer.special_tokens) if source is not None else None
    if template is not None:
        template.check()
    return Masker(tokenizer, template, plan.supervise, allow_special=plan.keep_special, max_length=plan.max_length)


def plan_analysis(path: Path, reading: ReadPlan, tokens: TokenPlan | None) -> AnalysisRequest:
    """What to look at for one file, as the configuration reads it where it names it.

    Args:
        path: The file.
        reading: How files are read.
        tokens: How rows become tokens; None where no model is ready.
    """
    reference = entry_text(path)
    configured = reference in reading.train
    source = None
    if tokens is not None:
        source = template_source(str(tokens.template_file) if tokens.template_file else None, tokens.template_name)
    return AnalysisRequest(
        train=(reference,),
        eval=reading.eval if configured else (),
        format=reading.format if configured else "auto",
        columns=dict(reading.columns) if configured and reading.columns else None,
        model=str(find_base(tokens.base, tokens.directory)) if tokens is not None else None,
        template=source,
        supervise=tokens.supervise if tokens is not None else "assistant",
        allow_special=tokens.keep_special if tokens is not None else False,
        max_length=tokens.max_length if tokens is not None else 0,
        overlong=reading.overlong if configured else "drop",
    )
