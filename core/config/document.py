"""The configuration file: read, validated, edited without losing its comments, and written atomically."""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli
import tomlkit
import tomlkit.exceptions
from pydantic import ValidationError
from tomlkit.items import Float, Table

from core.config.explain import SECRET_HINT, explain, unknown_option
from core.config.facts import Facts
from core.config.files import FileText
from core.config.rules import Remark
from core.config.rules.check import check_rules
from core.config.schema import Config, DataSection, find_option
from core.config.values import describe_type, parse_value, unquoted
from core.errors import UserError
from core.hub.store import pinned
from core.hub_uri import absolute
from core.path_kind import refuse_kind
from core.paths import working_directory
from core.redact import secret_variable
from core.secrets import find_secret
from core.text import is_unicode, one_line

#: The most beginnings of a file that are parsed; one value over a thousand lines is not worth more.
_ATTEMPTS = 600


def line_of(text: str, *path: str) -> int | None:
    """The line, counted from 1, on which a key or a section begins; None where it is not written.

    All of TOML is understood, since the file is parsed: the key is written on the first line after the longest
    beginning of the file that is valid TOML and does not have the key.

    Args:
        text: The TOML text.
        path: The key, section by section: ``"data", "train"``.
    """
    lines = text.split("\n")
    if not _has(_read(lines, len(lines)), path):
        return None
    # Invariant: the beginning of `low` lines is TOML without the key, that of `high` lines is TOML with it.
    low, high, attempts = 0, len(lines), 0
    while high - low > 1:
        middle = (low + high) // 2
        # In the middle of a value of several lines neither holds: back to its beginning, else on to its end.
        for count in [*range(middle, low, -1), *range(middle + 1, high)]:
            attempts += 1
            if attempts > _ATTEMPTS:
                return None
            found = _read(lines, count)
            if found is not None:
                break
        else:
            break
        if _has(found, path):
            high = count
        else:
            low = count
    return low + 1


def repeated_line(text: str) -> int | None:
    """The line, counted from 1, on which a key or a section is repeated; None if there is none, or it is too far
    down."""
    lines = text.split("\n")
    for count in range(1, min(len(lines), _ATTEMPTS) + 1):
        try:
            tomli.loads("\n".join(lines[:count]))
        except RecursionError:
            return None
        except ValueError as error:
            # Other errors may come from a value that continues below.
            if str(error).startswith("Cannot "):
                return count
    return None


def _read(lines: Sequence[str], count: int) -> Mapping[str, Any] | None:
    """The first lines as a TOML document; None where they are not valid."""
    try:
        return tomli.loads("\n".join(lines[:count]))
    except (ValueError, RecursionError):
        # Numbers of too many digits raise an error of Python's own.
        return None


def _has(found: Any, path: Sequence[str]) -> bool:
    for key in path:
        if isinstance(found, list):
            found = found[0] if found else None
        if not isinstance(found, Mapping) or key not in found:
            return False
        found = found[key]
    return True


__all__ = ["ConfigDocument", "describe_type", "dump_config", "load_config", "parse_value"]


class ConfigDocument:
    """A TOML configuration as its author wrote it, comments and order included.

    ``get`` and ``set`` work on the written values; ``validate`` returns a :class:`~core.config.schema.Config`.

    Args:
        text: The TOML text; empty for a new configuration.
        path: The path of the file, for messages and for ``save``; relative paths inside are relative to its directory.

    Raises:
        UserError: If the text is not TOML; the message names file, line and column.
    """

    def __init__(self, text: str = "", path: Path | None = None) -> None:
        self.path = path
        self._source = text
        self._file: FileText | None = None
        self._overridden: set[str] = set()
        self._toml = self._parse(text)
        # Of the document as plain objects; a form asks for each of its options at every key.
        self._plain: Mapping[str, Any] | None = None

    def _parse(self, text: str) -> tomlkit.TOMLDocument:
        if text.lstrip()[:1] == "{":
            raise UserError(f"{self._where} holds JSON, not TOML.", "Name a configuration in TOML.")
        try:
            return tomlkit.parse(text)
        except RecursionError as error:
            raise UserError(f"{self._where} is nested too deep for a configuration.", "Fix it.") from error
        except tomlkit.exceptions.TOMLKitError as error:
            what = one_line(str(error).split(" at line")[0], 200).rstrip(".")
            if isinstance(error, tomlkit.exceptions.ParseError) and error.col:
                line: int | None = error.line
                place = f"line {error.line}, column {error.col}: "
            else:
                # tomlkit does not say where a repeated key is.
                line = repeated_line(text)
                place = f"line {line}: " if line else ""
            raise UserError(
                f"{self._where} is not valid TOML: {place}{what}.", f"Fix line {line}." if line else "Fix it."
            ) from error

    @classmethod
    def load(cls, path: Path) -> ConfigDocument:
        """Read a file.

        Raises:
            UserError: If it is missing, not a file, of another kind (as data), not UTF-8 or not TOML.
        """
        refuse_kind(path, "config")
        try:
            file = FileText.read(path)
        except FileNotFoundError as error:
            raise UserError(f"There is no configuration file at {path}.", "Check the path.") from error
        except IsADirectoryError as error:
            raise UserError(f"{path} is a directory, not a configuration file.", "Name the TOML file in it.") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
        except OSError as error:
            hint = "Check its permissions." if error.errno in (errno.EACCES, errno.EPERM) else "Check the path."
            raise UserError(f"{path} cannot be read: {error.strerror}.", hint) from error
        except ValueError as error:
            raise UserError(f"{path} is not a name that a file can have here.", "Check the path.") from error
        document = cls(file.text, path)
        document._file = file
        return document

    @property
    def _where(self) -> str:
        return str(self.path) if self.path else "The configuration"

    def dumps(self) -> str:
        """The TOML text."""
        return tomlkit.dumps(self._toml)

    @property
    def saved_text(self) -> str:
        """The text of its file when it was read or saved here; empty where it has none."""
        return self._file.text if self._file is not None else ""

    @property
    def has_changed_on_disk(self) -> bool:
        """True if another program has written the file since it was read or saved here."""
        return self.path is not None and self._file is not None and not self._file.is_still(self.path)

    def save(self, path: Path | None = None, *, overwrite: bool = False) -> None:
        """Write the file atomically; its line ends and permissions stay as they are.

        Args:
            path: The target; the file that was read by default.
            overwrite: Write even if another program has changed the file since.

        Raises:
            UserError: If there is no path, another program has changed the file, or it cannot be
                written; the old file is untouched.
        """
        target = path or self.path
        if target is None:
            raise UserError("The configuration has no file yet.", "Give it a path to save to.")
        if target == self.path and not overwrite and self.has_changed_on_disk:
            raise UserError(
                f"{target} was changed by another program since it was read.", "Load it again, or save elsewhere."
            )
        text = self.dumps()
        try:
            self._file = (self._file or FileText("")).write(target, text)
        except UnicodeEncodeError as error:
            wrong = one_line(error.object[error.start : error.end], 20)
            raise UserError(
                f"{target} is not written: it would hold {wrong}, which is not a character.", "Remove it."
            ) from error
        except OSError as error:
            raise UserError(f"{target} cannot be written: {error.strerror}.", "Choose another place.") from error
        self.path, self._source = target, text
        self._overridden.clear()

    def rewrite(self, text: str) -> None:
        """Replace the text of the file, to the byte; nothing is written until it is saved.

        Raises:
            UserError: If the text is not TOML; the old one stays.
        """
        self._toml = self._parse(text)
        self._plain = None

    def get(self, name: str) -> Any:
        """The value of ``section.key`` in the file; None where it is not written."""
        if self._plain is None:
            self._plain = self._toml.unwrap()
        section, _, key = name.partition(".")
        table = self._plain.get(section)
        value = table.get(key) if isinstance(table, Mapping) else None
        return copy.deepcopy(value) if isinstance(value, (list, dict)) else value

    def set(self, name: str, value: Any, typed: str = "") -> None:
        """Write ``section.key``; None removes it, and its section once empty, so that the default applies again.

        Args:
            name: The option.
            value: Its value.
            typed: The value as a person typed it: a number that TOML can hold is written that way, ``3e-4`` for 0.0003.

        Raises:
            UserError: If no such option exists, or the file uses the section's name for something else.
        """
        if find_option(name) is None:
            raise unknown_option(name)
        self._plain = None
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
        self._toml[section][key] = as_item(value, typed)

    def apply(self, assignments: Iterable[str]) -> None:
        """Apply ``section.key=value`` assignments as ``--set`` takes them; a text may be in quotes, as in the file.

        Raises:
            UserError: If one is malformed, unknown or of the wrong type.
        """
        for assignment in assignments:
            name, sign, raw = assignment.partition("=")
            shown = one_line(assignment, 80)
            if not sign:
                raise UserError(f"--set {shown} has no '='.", "Write it as --set section.key=value.")
            if not name.strip():
                raise UserError(f"--set {shown} names no option.", "Write it as --set section.key=value.")
            option = find_option(name.strip())
            if option is None:
                raise unknown_option(name.strip())
            self.set(option.name, parse_value(option, unquoted(raw)))
            self._overridden.add(option.name)

    def problems(self) -> dict[str, str]:
        """Every validation error, ``section.key`` (or ``section``) to one sentence; empty when the file is valid."""
        return {name: sentence for name, (sentence, _) in self._check()[1].items()}

    def validate(self) -> Config:
        """The validated configuration, with data, template and model paths made absolute.

        Raises:
            UserError: On the first problem; the message names file, line and key.
        """
        config, problems = self._check()
        if config is None or problems:
            name, (sentence, hint) = next(iter(problems.items()))
            more = f" ({len(problems) - 1} more like it.)" if len(problems) > 1 else ""
            raise UserError(f"{self.place(name)}: {sentence}{more}", hint)
        return self._resolve_paths(config)

    def remarks(self, facts: Facts | None = None) -> list[Remark]:
        """Findings of the rules between options (:mod:`core.config.rules`), errors first; empty for an invalid file.

        Args:
            facts: Facts about model, device, disk and rows, as far as they are known.
        """
        config, problems = self._check()
        if config is None:
            return []
        return [remark for remark in check_rules(config, facts) if self._subject(remark) not in problems]

    def complaint(self, remark: Remark) -> UserError:
        """The error for a remark, with its place in the file: file, line and key."""
        return UserError(f"{self.place(self._subject(remark))}: {remark.sentence}", remark.hint)

    def place(self, name: str) -> str:
        """The place where ``section.key`` is written: file and line, ``--set``, or the file alone if not written."""
        if name in self._overridden:
            return f"--set {name}"
        section, _, key = name.partition(".")
        line = line_of(self._source, section, key) if key else None
        line = line or line_of(self._source, section)
        return f"{self._where}, line {line}" if line else self._where

    def _subject(self, remark: Remark) -> str:
        """The first option of a remark that the file sets."""
        return next((name for name in remark.options if self.get(name) is not None), remark.options[0])

    def _check(self) -> tuple[Config | None, dict[str, tuple[str, str]]]:
        content = self._toml.unwrap()
        secrets = dict(self._secrets(content))
        try:
            config = Config.model_validate(content)
        except ValidationError as error:
            return None, explain(error) | secrets
        broken = {
            self._subject(remark): (remark.sentence, remark.hint)
            for remark in reversed(check_rules(config))
            if remark.level == "error"
        }
        return config, broken | secrets

    def _secrets(self, content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str]]]:
        """Keys and passwords in the file; a run would carry them into its directory."""
        for section, table in content.items():
            for key, value in table.items() if isinstance(table, Mapping) else [("", table)]:
                name = f"{section}.{key}" if key else section
                for text in _texts(value):
                    variable = secret_variable(text)
                    noun = f"the value of the variable {variable}" if variable is not None else find_secret(text)
                    # A path that happens to look like a key is none.
                    if noun is not None and not os.path.lexists(absolute(text, self._base)):
                        yield name, (f"{name} holds {noun}.", SECRET_HINT)

    @property
    def _base(self) -> Path:
        """The directory that relative paths start from."""
        return working_directory() / self.path.parent if self.path else working_directory()

    def _resolve_paths(self, config: Config) -> Config:
        base = self._base

        def entry(value: str) -> str:
            # A hub dataset is recorded with its commit, so that a continued run reads the same rows.
            return pinned(absolute(value, base))

        def every(value: str | list[str] | None) -> str | list[str] | None:
            if value is None:
                return None
            return entry(value) if isinstance(value, str) else [entry(item) for item in value]

        update: dict[str, Any] = {"data": {"train": every(config.data.train), "eval": every(config.data.eval)}}
        if config.data.corrections:
            update["data"]["corrections"] = absolute(config.data.corrections, base)
        if config.eval.prompts:
            update["eval"] = {"prompts": absolute(config.eval.prompts, base)}
        if config.template.file:
            update["template"] = {"file": absolute(config.template.file, base)}
        if config.model.adapter:
            update["model"] = {"adapter": absolute(config.model.adapter, base)}
        # A model may be a hub name; only an existing path is made absolute.
        if os.path.exists(absolute(config.model.base, base)):
            update.setdefault("model", {})["base"] = absolute(config.model.base, base)
        return config.with_options(**update)


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


#: Placeholder for training data that is not chosen yet.
_NO_DATA = "rows"
#: Removing an invalid value may make another one valid or invalid.
_ROUNDS = 3


def valid_part(document: ConfigDocument) -> Config:
    """A configuration with defaults in place of its invalid values, its training data included.

    Args:
        document: The configuration; it is only read.
    """
    probe = ConfigDocument(document.dumps(), document.path)
    for _ in range(_ROUNDS):
        # Invalid values are removed below before the next attempt.
        with suppress(UserError):
            return probe.validate()
        try:
            for name in probe.problems():
                probe.set(name, _NO_DATA if name == "data.train" else None)
        except UserError:
            # A section that is no section, or an option that does not exist.
            break
    return Config(data=DataSection(train=_NO_DATA))


def dump_config(config: Config) -> str:
    """A configuration as TOML with every value written out; absent values are left out.

    Raises:
        UserError: If a value is not valid Unicode, as the name of a directory from an older system may be.
    """
    document = tomlkit.document()
    for section, values in config.model_dump(exclude_none=True).items():
        table = tomlkit.table()
        for key, value in values.items():
            for text in _texts(value):
                if not is_unicode(text):
                    raise UserError(
                        f"{section}.{key} is {one_line(text, 200)}, which is not UTF-8, as everything in a "
                        "configuration is.",
                        "Rename the file or the directory, or name it by a link.",
                    )
            table[key] = as_item(value)
        document[section] = table
    return tomlkit.dumps(document)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def as_item(value: Any, typed: str = "") -> Any:
    """The value as a tomlkit item: a table inline, so that it stays at its key; a number as typed; others unchanged."""
    if isinstance(value, float) and typed:
        with suppress(tomlkit.exceptions.TOMLKitError):
            item = tomlkit.value(typed.strip())
            if isinstance(item, Float) and item == value:
                return item
    if not isinstance(value, Mapping):
        return value
    inline = tomlkit.inline_table()
    inline.update(value)
    return inline
