"""The configuration file: read, checked, edited without losing its comments, and written whole or not at all."""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions
from pydantic import ValidationError
from tomlkit.items import Item, Table

from core.atomic import write_atomic
from core.config.schema import Config, Option, find_option, options, sections
from core.errors import UserError
from core.hub.entries import absolute
from core.hub.store import pinned


class ConfigDocument:
    """A TOML configuration as its author wrote it, comments and order included.

    ``get`` and ``set`` work on what the file says; ``validate`` turns it into a :class:`~core.config.schema.Config`.

    Args:
        text: The TOML text; empty for a new configuration.
        path: Where it came from, for messages and for ``save``; relative paths inside are relative to its directory.

    Raises:
        UserError: If the text is not TOML; the message names file, line and column.
    """

    def __init__(self, text: str = "", path: Path | None = None) -> None:
        self.path = path
        try:
            self._toml = tomlkit.parse(text)
        except tomlkit.exceptions.ParseError as error:
            raise UserError(
                f"{self._where} is not valid TOML: line {error.line}, column {error.col}: "
                f"{str(error).split(' at line')[0].rstrip('.')}.",
                "Mend that line.",
            ) from error
        except tomlkit.exceptions.TOMLKitError as error:
            raise UserError(f"{self._where} is not valid TOML: {error}.", "Mend it.") from error

    @classmethod
    def load(cls, path: Path) -> ConfigDocument:
        """Read a file.

        Raises:
            UserError: If it is missing, not a file, not UTF-8 or not TOML.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise UserError(f"There is no configuration file at {path}.", "Check the path.") from error
        except IsADirectoryError as error:
            raise UserError(f"{path} is a directory, not a configuration file.", "Name the TOML file in it.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from error
        return cls(text, path)

    @property
    def _where(self) -> str:
        return str(self.path) if self.path else "The configuration"

    def dumps(self) -> str:
        """The TOML text."""
        return tomlkit.dumps(self._toml)

    def save(self, path: Path | None = None) -> None:
        """Write the file whole or not at all.

        Raises:
            UserError: If there is no path or it cannot be written; the old file is untouched.
        """
        target = path or self.path
        if target is None:
            raise UserError("The configuration has no file yet.", "Give it a path to save to.")
        try:
            write_atomic(target, self.dumps(), mode=0o644)
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}.", "Choose another place.") from error
        self.path = target

    def get(self, name: str) -> Any:
        """What the file says for ``section.key``; None where it says nothing."""
        section, _, key = name.partition(".")
        table = self._toml.get(section)
        value = table.get(key) if isinstance(table, Mapping) else None
        return value.unwrap() if isinstance(value, Item) else value

    def set(self, name: str, value: Any) -> None:
        """Write ``section.key``; None removes it, and its section when nothing is left in it: the default holds again.

        Raises:
            UserError: If no such option exists, or the file uses the section's name for something else.
        """
        if find_option(name) is None:
            raise unknown_option(name)
        section, _, key = name.partition(".")
        table = self._toml.get(section)
        if table is not None and not isinstance(table, MutableMapping):
            raise UserError(f"{section} must be a section with keys, not {table!r}.", f"Write [{section}].")
        if value is None:
            if table is not None and key in table:
                del table[key]
                if isinstance(table, Table) and not table.as_string().strip():
                    del self._toml[section]
            return
        if table is None:
            self._toml[section] = tomlkit.table()
        self._toml[section][key] = _as_item(value)

    def apply(self, assignments: Iterable[str]) -> None:
        """Apply ``section.key=value`` assignments as ``--set`` takes them.

        Raises:
            UserError: If one is malformed, unknown or of the wrong type.
        """
        for assignment in assignments:
            name, sign, raw = assignment.partition("=")
            if not sign:
                raise UserError(f"--set {assignment} has no '='.", "Write it as --set section.key=value.")
            option = find_option(name.strip())
            if option is None:
                raise unknown_option(name.strip())
            self.set(option.name, parse_value(option, raw))

    def problems(self) -> dict[str, str]:
        """Every problem found, ``section.key`` (or ``section``) to one sentence; empty when it is valid."""
        return {name: sentence for name, (sentence, _) in self._check()[1].items()}

    def validate(self) -> Config:
        """The configuration, checked, with data, template and model paths made absolute.

        Raises:
            UserError: On the first problem; the message names file, line and key.
        """
        config, problems = self._check()
        if config is None:
            name, (sentence, hint) = next(iter(problems.items()))
            line = self._line_of(name)
            place = f"{self._where}, line {line}" if line else self._where
            more = f" ({len(problems) - 1} more like it.)" if len(problems) > 1 else ""
            raise UserError(f"{place}: {sentence}{more}", hint)
        return self._resolve_paths(config)

    def _check(self) -> tuple[Config | None, dict[str, tuple[str, str]]]:
        try:
            return Config.model_validate(self._toml.unwrap()), {}
        except ValidationError as error:
            return None, _explain(error)

    def _line_of(self, name: str) -> int | None:
        """The line of ``section.key`` in the text, counted from 1, where it can be told."""
        section, _, key = name.partition(".")
        current = ""
        for number, line in enumerate(io.StringIO(self.dumps()), 1):
            stripped = line.strip()
            if stripped.startswith("["):
                current = stripped.strip("[] \t").partition("#")[0].strip("] \t")
                if current == (section if not key else name):
                    return number
            elif key:
                written = stripped.partition("=")[0].replace(" ", "").replace('"', "").replace("'", "")
                if written == (key if current == section else name) and current in (section, ""):
                    return number
        return None

    def _resolve_paths(self, config: Config) -> Config:
        base = self.path.parent.absolute() if self.path else Path.cwd()

        def entry(value: str) -> str:
            # What a run reads is written down with its commit, so that it reads the same when it goes on.
            return pinned(absolute(value, base))

        def every(value: str | list[str] | None) -> str | list[str] | None:
            if value is None:
                return None
            return entry(value) if isinstance(value, str) else [entry(item) for item in value]

        data = config.data.model_copy(update={"train": every(config.data.train), "eval": every(config.data.eval)})
        update: dict[str, Any] = {"data": data}
        if config.template.file:
            update["template"] = config.template.model_copy(update={"file": absolute(config.template.file, base)})
        # A model may be a name; only what exists as a path is one.
        if Path(absolute(config.model.base, base)).exists():
            update["model"] = config.model.model_copy(update={"base": absolute(config.model.base, base)})
        return config.model_copy(update=update)


def load_config(path: Path, assignments: Iterable[str] = ()) -> Config:
    """Read, override and check a configuration file in one go.

    Args:
        path: The TOML file.
        assignments: ``section.key=value`` overrides.

    Raises:
        UserError: One sentence that names file, line and key.
    """
    document = ConfigDocument.load(path)
    document.apply(assignments)
    return document.validate()


def dump_config(config: Config) -> str:
    """A configuration as TOML with every value written out, absent ones left out."""
    document = tomlkit.document()
    for section, values in config.model_dump(exclude_none=True).items():
        table = tomlkit.table()
        for key, value in values.items():
            table[key] = _as_item(value)
        document[section] = table
    return tomlkit.dumps(document)


def _as_item(value: Any) -> Any:
    """A table on one line, so that it stays where its key stands; other values as they are."""
    if not isinstance(value, Mapping):
        return value
    inline = tomlkit.inline_table()
    inline.update(value)
    return inline


def parse_value(option: Option, raw: str) -> Any:
    """A value typed by a person, as the option's type.

    Raises:
        UserError: If it cannot be one.
    """
    text = raw.strip()
    if text == "" and option.optional:
        return None
    try:
        if option.type == "boolean":
            return {
                "true": True,
                "yes": True,
                "on": True,
                "1": True,
                "false": False,
                "no": False,
                "off": False,
                "0": False,
            }[text.lower()]
        if option.type == "integer":
            return int(text.replace("_", ""))
        if option.type == "number":
            return float(text.replace("_", ""))
    except (KeyError, ValueError) as error:
        wanted = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}[option.type]
        raise UserError(f"{option.name} must be {wanted}, not '{text}'.", option.help) from error
    if option.type == "table":
        return _parse_toml(option, text if text.startswith("{") else f"{{{text}}}", 'table. Write it as {a = "b"}')
    if option.type == "numbers":
        return _parse_toml(option, text if text.startswith("[") else f"[{text}]", "list. Write it as [1, 0.5]")
    if option.type in ("paths", "list"):
        if text.startswith("["):
            return _parse_toml(option, text, 'list. Write it as ["a", "b"]')
        if text in option.choices or "," not in text:
            return [text] if option.choices and text not in option.choices else text
        return [part.strip() for part in text.split(",")]
    return text


def _parse_toml(option: Option, text: str, wanted: str) -> Any:
    noun, _, how = wanted.partition(". ")
    try:
        return tomlkit.parse(f"x = {text}").unwrap()["x"]
    except tomlkit.exceptions.TOMLKitError as error:
        raise UserError(f"{option.name}: {text} is not a TOML {noun}.", f"{how}.") from error


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a mistyped one most likely meant."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None


def unknown_option(name: str) -> UserError:
    """The error for an option that does not exist, with the nearest one that does."""
    section, _, key = name.partition(".")
    every = [option.name for option in options()]
    same_section = [known for known in every if known.startswith(f"{section}.")]
    guess = nearest(name, same_section) or nearest(name, every)
    if guess is None and key:
        by_key = {known.split(".")[1]: known for known in every}
        guess = by_key.get(nearest(key, by_key) or "")
    hint = f"Did you mean {guess}?" if guess else f"The sections are {', '.join(sections())}."
    return UserError(f"There is no option {name}.", hint)


def _explain(error: ValidationError) -> dict[str, tuple[str, str]]:
    """Pydantic's findings as a sentence and a hint per ``section.key``."""
    found: dict[str, tuple[str, str]] = {}
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        name = ".".join(location[:2])
        if name in found:
            continue
        option = find_option(name)
        if item["type"] == "extra_forbidden":
            unknown = unknown_option(name) if len(location) > 1 else _unknown_section(location[0], item["input"])
            found[name] = (unknown.message, unknown.hint)
        elif item["type"] == "missing":
            name = name if "." in name else f"{name}.train"
            missing = find_option(name)
            found[name] = (f"{name} is missing.", missing.help if missing else "")
        elif option is not None:
            found[name] = (f"{name} must be {describe_type(option)}, not {item['input']!r}.", option.help)
        else:
            found[name] = (f"{name} must be a section with keys, not {item['input']!r}.", f"Write [{name}].")
    return found


def _unknown_section(name: str, value: Any) -> UserError:
    if isinstance(value, Mapping):
        guess = nearest(name, sections())
        hint = f"Did you mean [{guess}]?" if guess else f"The sections are {', '.join(sections())}."
        return UserError(f"There is no section [{name}].", hint)
    return unknown_option(name)


def describe_type(option: Option) -> str:
    """What an option accepts, in words: ``a whole number from 1 to 1024``."""
    if option.type == "choice":
        return f"one of {', '.join(option.choices)}"
    if option.type == "boolean":
        return "true or false"
    if option.type in ("paths", "list"):
        return (
            "a text or a list of texts" if not option.choices else f"{' or '.join(option.choices)}, or a list of names"
        )
    if option.type == "table":
        return f"a table of texts with keys from {', '.join(option.choices)}"
    if option.type == "numbers":
        return "a list of numbers above 0"
    if option.type == "text":
        return "a text"
    noun = "a whole number" if option.type == "integer" else "a number"
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"{noun} from {low:g} to {high:g}"
    return f"{noun} from {low:g} up" if low is not None else noun
