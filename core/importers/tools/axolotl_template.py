"""Axolotl: its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.importers.rules import Choice
from core.importers.translation import Translation


@dataclass(frozen=True)
class Style:
    """The format in which Axolotl writes the rows of a dataset.

    Args:
        key: ``datasets[1]``.
        style: The named template nearest to the format of its type; None for conversations.
        template: Its own ``chat_template``.
    """

    key: str
    style: str | None
    template: str | None


#: ``chat_template``: most others are the models' own.
TEMPLATES = Choice(
    "template.name",
    same={
        "tokenizer_default": None,
        "chatml": "chatml",
        "llama3": "llama3",
        "phi_35": "phi3",
        "qwen2_vl": "qwen",
        **dict.fromkeys(["gemma", "gemma3", "gemma3n"], "gemma"),
    },
    near={
        "phi_3": ("phi3", "Without the token that begins a text."),
        "qwen_25": ("qwen", "Its default system prompt does not name its maker here."),
        **dict.fromkeys(
            ["mistral_v1", "mistral_v2v3", "mistral_v3_tekken"], ("mistral", "Blanks around [INST] differ by a little.")
        ),
        "alpaca": ("alpaca", "Its first sentence differs by a little."),
    },
    otherwise=(None, "Not one of the templates here: the model's own chat template is used."),
)
_OURS: dict[Any, Any] = {**TEMPLATES.same, **{name: ours for name, (ours, _) in TEMPLATES.near.items()}}
_FALLBACK = "tokenizer_default_fallback_"


def choose_template(work: Translation, train: Sequence[Style]) -> None:
    """Choose the chat template: instruction types have a format of their own, whatever ``chat_template`` is."""
    styles = {entry.style for entry in train}
    if len(styles) == 1 and (style := next(iter(styles))) is not None:
        reason = f"The form in which Axolotl writes the type of {train[0].key}, or nearly so."
        for key in ("chat_template", "chat_template_jinja"):
            if work.has(key):
                work.drop(key, "The type of the datasets has a form of its own, and that counts in Axolotl.")
        work.put("template.name", style, reason)
        return
    for entry in train:
        if entry.template is not None and entry.template != work.values.get("chat_template"):
            ours = _OURS.get(entry.template) if len({other.template for other in train}) == 1 else None
            if ours is not None:
                work.change(f"{entry.key}.chat_template", "template.name", ours, "It is the template of all rows here.")
            else:
                work.drop(f"{entry.key}.chat_template", "Not offered for one dataset: template.name is for all rows.")
    jinja = work.text("chat_template_jinja")
    if "template.name" in work.settings:
        if work.has("chat_template"):
            work.drop("chat_template", "The dataset's own counts.")
    elif jinja is None or work.values.get("chat_template") not in (None, "jinja"):
        _choose(work)
    if jinja is not None and not work.is_done("chat_template_jinja"):
        if work.is_done("chat_template"):
            work.drop("chat_template_jinja", "It counts only with chat_template: jinja.")
        elif "\n" not in jinja and "{" not in jinja and work.places.exists(jinja):
            path = work.places.locate(jinja)
            work.change("chat_template_jinja", "template.file", work.places.write(path), "A file.")
        else:
            work.drop("chat_template_jinja", "Write it to a file, and name that in template.file.")
    if work.has("chat_template") and not work.is_done("chat_template"):
        work.carry("chat_template", None, reason="See chat_template_jinja.")


def choose_variables(work: Translation) -> None:
    """Variables of the chat template: ``chat_template_kwargs``, whose lists and tables cannot be said here."""
    key, given = "chat_template_kwargs", work.values.get("chat_template_kwargs")
    if not work.has(key):
        return
    if not isinstance(given, dict):
        work.drop(key, "It is not a table of variables.")
        return
    said = {name: value for name, value in given.items() if isinstance(value, (bool, int, float, str))}
    if not said:
        work.carry(key, None, reason="It sets nothing.")
    elif (name := work.settings.get("template.name")) is not None:
        work.drop(key, f"The template {name.value} has no variables.")
    elif said == given:
        work.carry(key, "template.variables", said)
    else:
        left = ", ".join(str(name) for name in given if name not in said)
        work.change(key, "template.variables", said, f"Without {left}: texts, numbers, true and false can be said.")


def _choose(work: Translation) -> None:
    name = work.values.get("chat_template")
    if isinstance(name, str) and name.startswith(_FALLBACK):
        ours = _OURS.get(name.removeprefix(_FALLBACK))
        instead = f'set template.name = "{ours}"' if ours else "set template.file"
        work.note_change("chat_template", "template.name", f"The model's own is used; where it has none, {instead}.")
    else:
        work.choose("chat_template", TEMPLATES)
