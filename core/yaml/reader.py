"""Bounded YAML reader that records the line of every key."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from core.errors import UserError
from core.text import one_line
from core.yaml.file import YamlFile

#: Largest file read, in bytes. Configurations are a few kilobytes.
LIMIT = 128 << 10
#: Most values that a file may stand for once its aliases are expanded.
MOST_VALUES = 20_000
#: Longest key, in characters.
LONGEST_KEY = 200

_DEEPEST = 40
#: Characters of a string that count as one more value.
_CHARACTERS = 64
#: Numbers beyond this are no plausible setting.
_LARGEST = 1 << 63
_MAP, _SEQUENCE, _MERGE = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:merge"
_TEXT = "tag:yaml.org,2002:str"
_SCALARS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}
# None of the tools has dates as values; they are kept as text.
_TEXTS = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}


def read_document(path: Path, clean: Callable[[str], str] = str) -> YamlFile:
    """Read a file with PyYAML's safe loader, in this process; see :func:`core.yaml.sandboxed.read_yaml`.

    Raises:
        UserError: As :func:`core.yaml.sandboxed.read_yaml`.
    """
    shown = one_line(str(path))
    reader = _Reader(shown, clean)
    try:
        values = reader.read(_text(path, shown))
    except yaml.MarkedYAMLError as error:
        # The error's own text quotes the line, which may hold a token.
        mark = error.problem_mark or error.context_mark
        reader.refuse(mark.line if mark else None, f"is not YAML: {error.problem or error.context or 'broken'}")
    except yaml.YAMLError as error:
        raise UserError(f"{shown} is not YAML: {one_line(str(error), 120)}.", "Fix it.") from error
    except RecursionError as error:
        raise UserError(f"{shown} is nested too deep for a configuration.", "Check the path.") from error
    return YamlFile(path, values, reader.lines)


def _text(path: Path, shown: str) -> str:
    try:
        # Non-blocking, so that a pipe put there cannot block this process.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UserError(f"There is no file at {shown}.", "Check the path.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{shown} cannot be read: {reason}.", "Check the path and its permissions.") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{shown} is a directory.", "Name the YAML file in it.")
        if not stat.S_ISREG(mode):
            raise UserError(f"{shown} is no regular file.", "Copy its contents to a file and name that.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            raw = file.read(LIMIT + 1)
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error.strerror}.", "Check the disk it is on.") from error
    finally:
        os.close(descriptor)
    if len(raw) > LIMIT:
        raise UserError(f"{shown} is larger than {LIMIT >> 10} KB; that is no configuration.", "Check the path.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{shown} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from error


class _Reader:
    """Converts the nodes of a document to plain values, and records the lines of the keys."""

    def __init__(self, shown: str, clean: Callable[[str], str]) -> None:
        self.lines: dict[str, int] = {}
        self._shown = shown
        self._clean = clean
        self._sizes: dict[int, int] = {}

    def read(self, text: str) -> dict[str, Any]:
        self._loader = yaml.SafeLoader(text)
        try:
            node = self._loader.get_node() if self._loader.check_node() else None
            if self._loader.check_node():
                line = self._loader.peek_event().start_mark.line
                self.refuse(line, "holds a second YAML document", "Put each in a file of its own.")
            if node is None:
                raise UserError(f"{self._shown} is empty.", "Name a YAML file with a configuration.")
            if not isinstance(node, yaml.MappingNode):
                self.refuse(node.start_mark.line, "is no table of keys and values", "Name a configuration.")
            self._measure(node, set())
            values = self._value(node, "", 0)
        finally:
            self._loader.dispose()
        if not isinstance(values, dict) or not values:
            raise UserError(f"{self._shown} is empty.", "Name a YAML file with a configuration.")
        return values

    def refuse(self, line: int | None, what: str, hint: str = "Fix it.") -> NoReturn:
        """Raise the error for a line, counted from 0."""
        place = "" if line is None else f", line {line + 1},"
        raise UserError(f"{self._shown}{place} {one_line(self._clean(what), 160)}.", hint)

    def _measure(self, node: yaml.Node, above: set[int]) -> int:
        """Number of values that a node stands for with all its aliases expanded."""
        known = self._sizes.get(id(node))
        if known is not None:
            return known
        if id(node) in above:
            self.refuse(node.start_mark.line, "holds an alias to a part that it is in itself")
        if len(above) > _DEEPEST:
            self.refuse(node.start_mark.line, "is nested too deep for a configuration")
        inside = {*above, id(node)}
        # A long text counts for several, as aliases repeat it.
        size = 1 + (len(node.value) // _CHARACTERS if node.tag == _TEXT else 0)
        for child in _children(node):
            size += self._measure(child, inside)
            if size > MOST_VALUES:
                self.refuse(
                    child.start_mark.line,
                    f"stands for more than {MOST_VALUES} values, its aliases written out",
                    "That is no configuration; check the path.",
                )
        self._sizes[id(node)] = size
        return size

    def _value(self, node: yaml.Node, where: str, depth: int) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._table(node, where, depth)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _SEQUENCE:
                self._refuse_tag(node)
            return [self._value(child, f"{where}[{number}]", depth + 1) for number, child in enumerate(node.value, 1)]
        if node.tag in _TEXTS:
            return node.value
        if node.tag not in _SCALARS:
            self._refuse_tag(node)
        try:
            value = self._loader.construct_object(node)
        except (ValueError, OverflowError):
            self.refuse(node.start_mark.line, "has a number that cannot be read")
        if isinstance(value, str):
            self._check_text(value, node)
        elif isinstance(value, int) and abs(value) > _LARGEST:
            self.refuse(node.start_mark.line, "has a number that cannot be read")
        return value

    def _table(self, node: yaml.MappingNode, where: str, depth: int) -> dict[str, Any]:
        if node.tag != _MAP:
            self._refuse_tag(node)
        merged: dict[str, Any] = {}
        table: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line
            if key_node.tag == _MERGE:
                merged = {**self._merged(value_node, where, depth), **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(line, "has a list or a table where a key is expected")
            key = str(key_node.value)
            self._check_text(key, key_node)
            if len(key) > LONGEST_KEY:
                self.refuse(line, f"has a key of {len(key)} characters")
            if key in first:
                what = f"has {one_line(key, 60)} a second time; the first is on line {first[key] + 1}"
                self.refuse(line, what, "Remove one of them.")
            first[key] = line
            name = f"{where}.{key}" if where else key
            self.lines[name] = line + 1
            table[key] = self._value(value_node, name, depth + 1)
        return {**{key: value for key, value in merged.items() if key not in table}, **table}

    def _merged(self, node: yaml.Node, where: str, depth: int) -> dict[str, Any]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for part in nodes:
            if not isinstance(part, yaml.MappingNode):
                self.refuse(node.start_mark.line, "merges something that is no table (<<)")
            found = {**self._table(part, where, depth), **found}
        return found

    def _check_text(self, text: str, node: yaml.Node) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            self.refuse(node.start_mark.line, "has half a character (a lone surrogate)")

    def _refuse_tag(self, node: yaml.Node) -> NoReturn:
        self.refuse(node.start_mark.line, f"has a value of the kind {node.tag}, which no configuration needs")


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
