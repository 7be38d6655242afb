"""Provenance: the source of each value of a configuration, shown before a run starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.config.compare import holding_values, is_same
from core.config.document import ConfigDocument
from core.config.schema import Config, options
from core.presets.switch import chosen_in, imported_from, preset_in
from core.runs.catalog.earlier import Origin

#: Where a value comes from: a preset, the choice for the rows or the model of a new configuration, the run whose
#: configuration was opened, the file of the configuration, or an edit in the app.
Source = Literal["preset", "rows", "model", "run", "file", "user"]

#: Options that name the subject of a run, and are no choice about it.
_SUBJECT = ("data.train", "model.base")
#: Options that are chosen for the rows of a new configuration; others that were chosen are for its model.
FOR_ROWS = ("data.eval_share", "eval.every_epochs", "eval.baseline", "eval.probe")
#: Sources that write their values into a configuration; a different value there is a change by the user.
_WRITTEN: tuple[Source, ...] = ("rows", "model", "preset")


@dataclass(frozen=True)
class ValueGroup:
    """The values that come from one source.

    Args:
        source: The source.
        name: The name of the preset or of the file, or the id of the run. For values of the user that may also come
            from an imported file or a deleted run, that file's name or run's id. Empty for the other sources.
        values: ``section.key`` to the effective value, in the order of the options.
    """

    source: Source
    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """The sources of the values of a configuration. A value in no group is its default, and nothing says otherwise.

    Args:
        groups: The sources in order, each with at least one value. Values of a preset, and values of the file or the
            user that override a preset, may equal the default.
        is_chosen: Whether the preset was chosen by the app for model, card and rows.
    """

    groups: tuple[ValueGroup, ...] = ()
    is_chosen: bool = False

    def of(self, source: Source) -> ValueGroup | None:
        """The group of a source; None where no value comes from it."""
        return next((group for group in self.groups if group.source == source), None)


def find_provenance(
    config: Config | None, document: ConfigDocument, *, origin: Origin | None = None, saved_text: str = ""
) -> Provenance:
    """Sources of the values of a configuration; data and base model are left out.

    Args:
        config: The configuration as a run would take it; None for the values as they are written.
        document: The same as it is written, with the comments that name its preset.
        origin: The run that it was begun with; None for none.
        saved_text: The text of its file, where it has one.
    """
    preset, chosen = preset_in(document), chosen_in(document)
    also_chosen = chosen.values if chosen is not None else {}
    path = document.path
    known: dict[Source, Mapping[str, Any]] = {
        "preset": preset.values if preset is not None else {},
        "rows": {name: value for name, value in also_chosen.items() if name in FOR_ROWS},
        "model": {name: value for name, value in also_chosen.items() if name not in FOR_ROWS},
        "run": origin.values if origin is not None else {},
        "file": holding_values(ConfigDocument(saved_text, path)) if path is not None else {},
        "user": {},
    }
    names: dict[Source, str] = {
        "preset": preset.name if preset is not None else "",
        "run": origin.run.id if origin is not None else "",
        "file": path.name if path is not None else "",
        "user": "" if path is not None else _unknown_source(document, origin),
    }
    groups = {source: ValueGroup(source, names.get(source, "")) for source in known}
    if config is None:
        values = holding_values(document)
    else:
        dumped = config.model_dump().items()
        values = {f"{section}.{key}": value for section, keys in dumped for key, value in keys.items()}
    for option in options():
        name, value = option.name, values.get(option.name)
        if name in _SUBJECT:
            continue
        is_default = is_same(value, option.default)
        is_asked = any(name in known[source] for source in _WRITTEN)
        if is_default and not is_asked:
            # It is the user's only where the file, or the run, has another one.
            former = known["file" if path is not None else "run"].get(name) if preset is None or path else None
            if former is not None and not is_same(former, value):
                groups["user"].values[name] = value
            continue
        others: tuple[Source, ...] = ("file",) if is_default else ("run", "file")
        candidates = (source for source in (*_WRITTEN, *others) if name in known[source])
        found = (source for source in candidates if is_same(known[source][name], value))
        groups[next(found, "user")].values[name] = value
    is_chosen = preset is not None and chosen is not None and chosen.preset == preset.name
    return Provenance(tuple(group for group in groups.values() if group.values), is_chosen)


def _unknown_source(document: ConfigDocument, origin: Origin | None) -> str:
    """A source whose values are not known any more; empty for none."""
    if origin is not None and not origin.values:
        return origin.run.id
    return imported_from(document) if origin is None else ""
