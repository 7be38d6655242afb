"""Go templates of shapes, in the style of Ollama's own: a loop over the messages.

:func:`go_template` and :func:`render` correspond: the template, and its output.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from core.worker.export.ollama.shape import Part, Reasoning, Shape, SystemText, Trim, UserPlace

#: White space in Python, which Jinja's ``trim`` removes.
WHITE_SPACE = tuple(character for character in map(chr, range(0x3001)) if character.isspace())
#: Functions that strip white space, by the name of the Go template for it.
_TRIMS: dict[Trim, Callable[[str], str]] = {"keep": str, "trim": str.strip, "ltrim": str.lstrip, "rtrim": str.rstrip}
_FLAGS = ("$system", "$first", "$last")
_LATER_SYSTEM = "a system message is only read at the beginning"
_NO_SYSTEM = "the chat template refuses a system message"
_OTHER_ROLE = "only messages of system, user and assistant are read"


def go_template(shape: Shape) -> str:
    """The Go template of a shape."""
    body = "\n".join([*_beginning(shape), *_loop(shape)])
    lines = [*_definitions(shape)]
    if "$system" in body:
        test = 'eq (index .Messages 0).Role "system"'
        if shape.empty_system_is_none:
            test = f'and ({test}) (ne (index .Messages 0).Content "")'
        lines.append(f"{{{{- $system := {test} }}}}")
    return "\n".join([*lines, body])


def render(shape: Shape, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Output of the Go template of a shape for a conversation in Ollama; None if it ends with an error.

    Args:
        shape: The shape.
        messages: ``role`` and ``content`` each, and ``reasoning_content`` if any.
    """
    turns = _joined(messages)
    first = turns[0]
    has_system = first["role"] == "system" and not (shape.empty_system_is_none and not first["content"])
    is_first_question = True
    out = [] if has_system and shape.system in ("turn", "inside") else [shape.head]
    for at, turn in enumerate(turns):
        role, content, is_last = turn["role"], turn["content"], at == len(turns) - 1
        if role == "system":
            text = _rendered_system(shape, content, at, has_system)
            if text is None:
                return None
            out.append(text)
        elif role == "user":
            place = UserPlace(has_system, is_first_question, is_last)
            for part in shape.user_before[place]:
                out.append(part if isinstance(part, str) else _TRIMS[part.trim](first["content"]))
            out += [_TRIMS[shape.user_trims[place]](content), shape.user_after]
            is_first_question = False
        elif role == "assistant":
            out.append(shape.assistant_before)
            reasoning, thinking = shape.reasoning, turn.get("reasoning_content", "")
            if reasoning is not None and is_kept(reasoning) and thinking and (reasoning.in_history or is_last):
                out.append(reasoning.opening + thinking + reasoning.closing)
            out += [_TRIMS[shape.assistant_trim](content), "" if is_last else shape.assistant_after]
        else:
            return None
    if turns[-1]["role"] != "assistant":
        out.append(shape.opening)
    return "".join(out)


def _joined(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages as Ollama passes them to a template: consecutive messages of a role are merged."""
    found: list[Mapping[str, Any]] = []
    for message in messages:
        if found and found[-1]["role"] == message["role"] != "tool":
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return found


def _rendered_system(shape: Shape, content: str, at: int, has_system: bool) -> str | None:
    """Text of a system message; None if the Go template refuses it."""
    if shape.system == "refused":
        return None
    turn = _TRIMS[shape.system_trim](content) + shape.system_after
    if shape.system == "turn" and shape.later_system is not None:
        is_empty = shape.empty_system_is_none and not content
        return "" if is_empty else (shape.later_system if at else shape.system_before) + turn
    if at:
        return None
    return shape.system_before + turn if shape.system == "turn" and has_system else ""


def quoted(text: str) -> str:
    """A text as a Go literal in one line, of characters that a Modelfile keeps."""
    return '"' + "".join(map(_escaped, text)) + '"'


def lost_character(text: str) -> str | None:
    """The first character of a text that a Modelfile loses, such as a control or format character."""
    return next((character for character in text if character not in "\n\t" and not character.isprintable()), None)


def is_kept(reasoning: Reasoning) -> bool:
    """True if the marks around reasoning can stand in a Go template, and in a Modelfile, as they are."""
    marks = reasoning.opening + reasoning.closing
    return '"""' not in marks and "{" not in marks and lost_character(marks) is None


def _is_plain(character: str) -> bool:
    """True if a character is printable in every version of Unicode in use."""
    return character == " " or (unicodedata.ucd_3_2_0.category(character)[0] not in "CZ" and character.isprintable())


def _escaped(character: str) -> str:
    simple = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}.get(character)
    if simple is not None:
        return simple
    if _is_plain(character):
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _write(text: str) -> list[str]:
    return [_written(text)] if text else []


def _written(text: str) -> str:
    return f"{{{{- {quoted(text)} }}}}"


def _refuse(reason: str) -> str:
    # A slice beyond the end of a text ends the rendering, with the text in the message.
    return f"{{{{- slice {quoted(reason)} 99 }}}}"


def _content(value: str, trim: Trim) -> str:
    return f"{{{{- {value} }}}}" if trim == "keep" else f'{{{{- template "{trim}" {value} }}}}'


def _indent(lines: Sequence[str]) -> list[str]:
    return ["  " + line for line in lines]


def _beginning(shape: Shape) -> Iterator[str]:
    if not shape.head:
        return
    lines = _write(shape.head)
    if shape.system in ("turn", "inside"):
        yield "{{- if not $system }}"
        yield from _indent(lines)
        yield "{{- end }}"
    else:
        yield from lines


def _loop(shape: Shape) -> Iterator[str]:
    user = list(_user(shape))
    has_first = any("$first" in line for line in user)
    if has_first:
        yield "{{- $first := true }}"
    yield "{{- range $i, $_ := .Messages }}"
    yield "{{- $last := eq (len (slice $.Messages $i)) 1 }}"
    yield '{{- if eq .Role "system" }}'
    yield from _indent(list(_system(shape)))
    yield '{{- else if eq .Role "user" }}'
    yield from _indent(user)
    if has_first:
        yield "  {{- $first = false }}"
    yield '{{- else if eq .Role "assistant" }}'
    yield from _indent(list(_assistant(shape)))
    yield "{{- else }}"
    yield "  " + _refuse(_OTHER_ROLE)
    yield "{{- end }}"
    if shape.opening:
        yield '{{- if and $last (ne .Role "assistant") }}'
        yield from _indent(_write(shape.opening))
        yield "{{- end }}"
    yield "{{- end }}"


def _system(shape: Shape) -> Iterator[str]:
    if shape.system == "refused":
        yield _refuse(_NO_SYSTEM)
        return
    turn = [_content(".Content", shape.system_trim), *_write(shape.system_after)]
    if shape.system == "turn" and shape.later_system is not None:
        if shape.later_system == shape.system_before:
            lines = [*_write(shape.system_before), *turn]
        else:
            lines = ["{{- if eq $i 0 }}", *_indent(_write(shape.system_before)), "{{- else }}"]
            lines += [*_indent(_write(shape.later_system)), "{{- end }}", *turn]
        if shape.empty_system_is_none:
            lines = ["{{- if .Content }}", *_indent(lines), "{{- end }}"]
        yield from lines
        return
    yield "{{- if $i }}"
    yield "  " + _refuse(_LATER_SYSTEM)
    if shape.system == "turn":
        yield "{{- else if $system }}"
        yield from _indent([*_write(shape.system_before), *turn])
    yield "{{- end }}"


def _user(shape: Shape) -> Iterator[str]:
    # If the system prompt is refused, there is no place with one.
    yield from _choose({place: tuple(map(_part, parts)) for place, parts in shape.user_before.items()})
    yield from _choose({place: (_content(".Content", trim),) for place, trim in shape.user_trims.items()})
    yield from _write(shape.user_after)


def _assistant(shape: Shape) -> Iterator[str]:
    yield from _write(shape.assistant_before)
    found = shape.reasoning
    if found is not None and is_kept(found):
        # As texts, not literals: Ollama finds by them where reasoning begins and ends in an answer.
        test = ".Thinking" if found.in_history else "and $last .Thinking"
        yield f"{{{{- if {test} }}}}{found.opening}{{{{ .Thinking }}}}{found.closing}{{{{ end }}}}"
    yield _content(".Content", shape.assistant_trim)
    if shape.assistant_after:
        yield "{{- if not $last }}"
        yield from _indent(_write(shape.assistant_after))
        yield "{{- end }}"


def _choose(table: Mapping[UserPlace, tuple[str, ...]]) -> list[str]:
    """The lines of a place, with as few conditions as possible."""
    entries = set(table.values())
    if len(entries) == 1:
        return list(next(iter(entries)))
    best: list[str] | None = None
    for number, flag in enumerate(_FLAGS):
        yes = {place: lines for place, lines in table.items() if astuple(place)[number]}
        no = {place: lines for place, lines in table.items() if not astuple(place)[number]}
        if not yes or not no:
            continue
        then, otherwise = _choose(yes), _choose(no)
        if not then:
            lines = [f"{{{{- if not {flag} }}}}", *_indent(otherwise), "{{- end }}"]
        else:
            lines = [f"{{{{- if {flag} }}}}", *_indent(then)]
            lines += ["{{- else }}", *_indent(otherwise), "{{- end }}"] if otherwise else ["{{- end }}"]
        if best is None or len(lines) < len(best):
            best = lines
    return best or []


def _part(part: Part) -> str:
    return _written(part) if isinstance(part, str) else _content("(index $.Messages 0).Content", part.trim)


def _definitions(shape: Shape) -> Iterator[str]:
    """Templates that strip white space: Go templates have no function for it."""
    used = {shape.system_trim, shape.assistant_trim, *shape.user_trims.values(), *_system_trims(shape)}
    if "trim" in used or "rtrim" in used:
        yield from _strip("rtrim", "(slice . (len (slice . {n})))", "(slice . 0 (len (slice . {n})))", "{{ . }}")
    for name, then in (("trim", '{{ template "rtrim" . }}'), ("ltrim", "{{ . }}")):
        if name in used:
            yield from _strip(name, "(slice . 0 {n})", "(slice . {n})", then)


def _system_trims(shape: Shape) -> Iterator[Trim]:
    for parts in shape.user_before.values():
        yield from (part.trim for part in parts if isinstance(part, SystemText))


def _strip(name: str, end: str, rest: str, then: str) -> Iterator[str]:
    """A template that writes its text without white space at one end, one character per call."""
    yield f'{{{{- define "{name}" }}}}'
    for number, size in enumerate((1, 2, 3)):
        characters = " ".join(quoted(space) for space in WHITE_SPACE if len(space.encode()) == size)
        test = f"and (ge (len .) {size}) (eq {end.format(n=size)} {characters})"
        yield f'{{{{- {"else if" if number else "if"} {test} }}}}{{{{ template "{name}" {rest.format(n=size)} }}}}'
    yield f"{{{{- else }}}}{then}"
    yield "{{- end }}"
    yield "{{- end }}"
