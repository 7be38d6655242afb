"""YAML reader that records the line of every key.

It runs in the sandbox, which limits its time and memory; the reader limits the size of the result, which leaves the
sandbox.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from core.errors import UserError
from core.small_files import read_small
from core.text import one_line

#: Largest file read, in bytes. Configurations are a few kilobytes.
LIMIT = 128 << 10
#: Most values of a file, with aliases and merge keys expanded.
MOST_VALUES = 20_000
#: Longest key, in characters.
LONGEST_KEY = 200

_DEEPEST = 40
#: Characters of a string that count as one more value.
_CHARACTERS = 64
#: Largest plausible number.
_LARGEST = 1 << 63
_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}
# None of the tools has dates as values; they are kept as text.
_TEXTS = {f"{_TAG}timestamp", f"{_TAG}value"}

Lines = dict[str, int]


def read_values(path: Path, clean: Callable[[str], str]) -> tuple[dict[str, Any], Lines, dict[str, list[int]]]:
    """Values of a file, the line of each key, and repeated keys, as in :class:`core.yaml.file.YamlFile`.

    Raises:
        UserError: As :func:`core.yaml.file.read_yaml`.
    """
    shown = one_line(str(path))
    reader = _Reader(shown, clean)
    try:
        values = reader.read(read_small(path, LIMIT).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        # A path with a NUL is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{shown} cannot be read: {reason}.", "Check the path and its permissions.") from error
    except yaml.MarkedYAMLError as error:
        # The text of the error quotes the line, which may hold a secret.
        mark = error.problem_mark or error.context_mark
        reader.refuse(mark.line if mark else None, f"is not YAML: {error.problem or error.context or 'broken'}")
    except yaml.YAMLError as error:
        raise UserError(f"{shown} is not YAML: {one_line(str(error), 120)}.", "Fix it.") from error
    except RecursionError as error:
        raise UserError(f"{shown} is nested too deep for a configuration.", "Check the path.") from error
    return values, reader.lines, reader.repeated


class _Reader:
    """Converts the nodes of a document to plain values, and records the lines of the keys."""

    def __init__(self, shown: str, clean: Callable[[str], str]) -> None:
        self.lines: Lines = {}
        self.repeated: dict[str, list[int]] = {}
        self._shown = shown
        self._clean = clean
        self._left = MOST_VALUES
        self._last_line = 0
        self._above: set[int] = set()

    def read(self, text: str) -> dict[str, Any]:
        self._loader = yaml.SafeLoader(text)
        try:
            node = self._loader.get_node() if self._loader.check_node() else None
            if self._loader.check_node():
                line = self._loader.peek_event().start_mark.line
                self.refuse(line, "holds a second YAML document", "Put each in a file of its own.")
            if node is not None and not isinstance(node, yaml.MappingNode):
                self.refuse(node.start_mark.line, "is not a table of keys and values", "Name a configuration.")
            values = self._value(node, "") if node is not None else {}
        finally:
            self._loader.dispose()
        if not values:
            raise UserError(f"{self._shown} is empty.", "Name a YAML file with a configuration.")
        return dict(values)

    def refuse(self, line: int | None, problem: str, hint: str = "Fix it.") -> NoReturn:
        """Raise the error for a line, counted from 0."""
        place = "" if line is None else f", line {line + 1},"
        raise UserError(f"{self._shown}{place} {one_line(self._clean(problem), 160)}.", hint)

    def _count(self, node: yaml.Node) -> None:
        """Count a key or a value; a long string counts as several values, since aliases may repeat it."""
        self._left -= 1 + (len(node.value) // _CHARACTERS if node.tag == f"{_TAG}str" else 0)
        if self._left < 0:
            problem = f"stands for more than {MOST_VALUES} values, its aliases written out"
            self.refuse(self._last_line, problem, "That is not a configuration; check the path.")

    def _value(self, node: yaml.Node, where: str) -> Any:
        line = node.start_mark.line
        self._count(node)
        if id(node) in self._above:
            self.refuse(line, "holds an alias to a part that it is in itself")
        if len(self._above) > _DEEPEST:
            self.refuse(line, "is nested too deep for a configuration")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self._above.add(id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            value: Any = self._table(node, where)
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            value = [self._value(child, f"{where}[{number}]") for number, child in enumerate(node.value, 1)]
        else:
            self._refuse_tag(node)
        self._above.remove(id(node))
        return value

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _TEXTS:
            return node.value
        if node.tag not in _SCALARS:
            self._refuse_tag(node)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError):
            value = _LARGEST + 1
        if isinstance(value, int) and abs(value) > _LARGEST:
            self.refuse(node.start_mark.line, "has a number that cannot be read")
        return self._checked(value, node)

    def _table(self, node: yaml.MappingNode, where: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        table: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            self._last_line = max(self._last_line, line)
            self._count(key_node)
            if key_node.tag == f"{_TAG}merge":
                merged = {**self._merged(value_node, where), **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(line, "has a list or a table where a key is expected")
            key = self._checked(str(key_node.value), key_node)
            if len(key) > LONGEST_KEY:
                self.refuse(line, f"has a key of {len(key)} characters")
            name = f"{where}.{key}" if where else key
            if key in table:
                self._replace(name)
            self.lines[name] = line + 1
            table[key] = self._value(value_node, name)
        return {**{key: value for key, value in merged.items() if key not in table}, **table}

    def _replace(self, name: str) -> None:
        """Note a key that is given again: its last value counts, as for PyYAML and the tools that use it."""
        earlier = [*self.repeated.pop(name, []), self.lines[name]]
        inner = (f"{name}.", f"{name}[")
        self.lines = {key: line for key, line in self.lines.items() if not key.startswith(inner)}
        self.repeated = {key: lines for key, lines in self.repeated.items() if not key.startswith(inner)}
        self.repeated[name] = earlier

    def _merged(self, node: yaml.Node, where: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                self.refuse(node.start_mark.line, "merges something that is no table (<<)")
            found = {**self._value(part, where), **found}
        return found

    def _checked(self, value: Any, node: yaml.Node) -> Any:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.refuse(node.start_mark.line, "has half a character (a lone surrogate)")
        return value

    def _refuse_tag(self, node: yaml.Node) -> NoReturn:
        self.refuse(node.start_mark.line, f"has a value of the kind {node.tag}, which no configuration needs")
