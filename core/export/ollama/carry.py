"""A shape written as a Go template, in the style of Ollama's own: a loop over the messages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple

from core.export.ollama.probe import Trim
from core.export.ollama.shape import Part, Shape, SystemText, UserPlace

#: What Python takes for white space, and Jinja's ``trim`` with it.
WHITE_SPACE = tuple(character for character in map(chr, range(0x3001)) if character.isspace())
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


def quoted(text: str) -> str:
    """A text as a literal of Go, in one line, of characters that a Modelfile keeps."""
    return '"' + "".join(map(_escaped, text)) + '"'


def lost_character(text: str) -> str | None:
    """The first character of a text that is lost in a Modelfile, such as a control or format character."""
    return next((character for character in text if character not in "\n\t" and not character.isprintable()), None)


def is_kept(text: str) -> bool:
    """Whether a text can stand in a Modelfile as it is."""
    return '"""' not in text and lost_character(text) is None


def _is_plain(character: str) -> bool:
    """Whether a character is printable in every version of Unicode in use."""
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
    # Where the system prompt is refused, no place with one was seen.
    yield from _choose({place: tuple(map(_part, parts)) for place, parts in shape.user_before.items()})
    yield from _choose({place: (_content(".Content", trim),) for place, trim in shape.user_trims.items()})
    yield from _write(shape.user_after)


def _assistant(shape: Shape) -> Iterator[str]:
    yield from _write(shape.assistant_before)
    found = shape.reasoning
    if found is not None and is_kept(found.opening) and is_kept(found.closing):
        # As texts, not literals: Ollama finds by them where reasoning begins and ends in an answer.
        test = ".Thinking" if found.in_history else "and $last .Thinking"
        yield f"{{{{- if {test} }}}}{found.opening}{{{{ .Thinking }}}}{found.closing}{{{{ end }}}}"
    yield _content(".Content", shape.assistant_trim)
    if shape.assistant_after:
        yield "{{- if not $last }}"
        yield from _indent(_write(shape.assistant_after))
        yield "{{- end }}"


def _choose(table: Mapping[UserPlace, tuple[str, ...]]) -> list[str]:
    """The lines of a place, chosen by as few conditions as it takes."""
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
    """Templates that leave out white space: Go templates have no function for it."""
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
    """A template that writes its text without white space at one end, one character a call."""
    yield f'{{{{- define "{name}" }}}}'
    for number, size in enumerate((1, 2, 3)):
        characters = " ".join(quoted(space) for space in WHITE_SPACE if len(space.encode()) == size)
        test = f"and (ge (len .) {size}) (eq {end.format(n=size)} {characters})"
        yield f'{{{{- {"else if" if number else "if"} {test} }}}}{{{{ template "{name}" {rest.format(n=size)} }}}}'
    yield f"{{{{- else }}}}{then}"
    yield "{{- end }}"
    yield "{{- end }}"
