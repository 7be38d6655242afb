"""The configuration as JSON Schema (draft 2020-12), for editors that check and complete TOML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.config.schema import Config, Option, find_option, sections

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Texts with a pattern (:data:`core.config.schema.Text`) are stripped before validation, so blanks alone are empty.
_NOT_BLANK = r"\S"


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file.

    Sections and options stand in the order of the reference. ``$ref`` is not used, as not all editors follow it. TOML
    has no null, so an optional value has no null either.
    """
    written = Config.model_json_schema(mode="validation")
    definitions = written.pop("$defs")
    properties: dict[str, Any] = {}
    for section, declaration in sections().items():
        found = _clean(definitions[declaration.__name__])
        found["description"] = (declaration.__doc__ or "").strip()
        found["properties"] = {
            key: _option(find_option(f"{section}.{key}"), value) for key, value in found["properties"].items()
        }
        properties[section] = {**{key: found.pop(key) for key in ("description", "type")}, **found}
    return {
        "$schema": DIALECT,
        "title": "Configuration of localtune-tui",
        "type": "object",
        "properties": properties,
        "required": written["required"],
        "additionalProperties": False,
    }


def _option(option: Option | None, written: dict[str, Any]) -> dict[str, Any]:
    if option is None:
        raise AssertionError("every property of a section is an option")
    return {"description": describe(option), **written}


def describe(option: Option) -> str:
    """The help of an option in paragraphs: summary, effect, unit, costs and source."""
    entry = option.manual
    costs = [f"{what}: {text}." for what, text in (("Memory", entry.memory), ("Time", entry.time)) if text]
    unit = f"Unit: {option.unit}." if option.unit else ""
    source = f"Source: {entry.source}." if entry.source else ""
    last = " ".join(filter(None, [unit, *costs, source]))
    return "\n\n".join(filter(None, [option.help, entry.about, last]))


def _clean(node: Any) -> Any:
    """Pydantic's schema without its titles and without null, and with blank texts refused."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    cleaned = {
        # A property may be called "title"; names of properties are kept.
        key: {name: _clean(inner) for name, inner in value.items()} if key == "properties" else _clean(value)
        for key, value in node.items()
        if key != "title"
    }
    if cleaned.get("minLength") == 1 and "pattern" in cleaned:
        del cleaned["minLength"]
        cleaned["pattern"] = _NOT_BLANK
    if "patternProperties" in cleaned:
        cleaned["additionalProperties"] = False
    if cleaned.get("default", ...) is None:
        del cleaned["default"]
    if "anyOf" in cleaned:
        arms = list(_arms(list(cleaned.pop("anyOf"))))
        cleaned = {**cleaned, **(arms[0] if len(arms) == 1 else {"anyOf": arms})}
    return cleaned


def _arms(arms: list[Any]) -> Iterator[Any]:
    """The alternatives of a union without null, nested unions flattened."""
    for arm in arms:
        if arm == {"type": "null"}:
            continue
        yield from _arms(arm["anyOf"]) if set(arm) == {"anyOf"} else [arm]
