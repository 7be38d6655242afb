"""Target modules: matching of layer names with ``method.target_modules`` (names, wildcards, regular expressions)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

#: The prefix of an entry that is a regular expression.
EXPRESSION = "re:"
_WILDCARDS = re.compile(r"[*?\[]")
#: The parts of a regular expression that match a single character and repeat nothing.
_CHARACTERS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]")
#: The most repetitions in one expression; each multiplies the time for a name by its length.
MOST_REPETITIONS = 5


def is_pattern(entry: str) -> bool:
    """Whether an entry is a wildcard or a regular expression rather than a name."""
    return entry.startswith(EXPRESSION) or _WILDCARDS.search(entry) is not None


def has_patterns(targets: str | Sequence[str]) -> bool:
    """Whether any entry is a pattern; ``all-linear`` is not."""
    return not isinstance(targets, str) and any(map(is_pattern, targets))


def expression_problem(entry: str) -> str | None:
    """The error of an entry that is a regular expression; None where it is valid.

    Repeated groups are refused: matching may take exponential time, and no layer's name needs one.
    """
    if not entry.startswith(EXPRESSION):
        return None
    expression = entry[len(EXPRESSION) :]
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    bare = _CHARACTERS.sub("x", expression)
    if _REPEATED_GROUP.search(bare):
        return "it repeats a group"
    if sum(map(bare.count, "*+{")) > MOST_REPETITIONS:
        return f"it has more than {MOST_REPETITIONS} repetitions"
    return None


def is_target(name: str, entry: str) -> bool:
    """Whether an entry matches a module.

    A name matches every module that has it, or whose name ends with it after a dot, as in PEFT. A wildcard
    (``*``, ``?``, ``[...]``) must match a whole name or the part after a dot. ``re:`` and a regular expression, which
    must match the whole name, corresponds to a string instead of a list in PEFT.

    Args:
        name: The module's name in the model: ``model.layers.0.self_attn.q_proj``.
        entry: One of ``method.target_modules``; an expression that :func:`expression_problem` refuses matches nothing.
    """
    if entry.startswith(EXPRESSION):
        if expression_problem(entry) is not None:
            return False
        return re.fullmatch(entry[len(EXPRESSION) :], name) is not None
    if _WILDCARDS.search(entry):
        return fnmatchcase(name, entry) or fnmatchcase(name, f"*.{entry}")
    return name == entry or name.endswith(f".{entry}")
