"""The private names of Textual that the app uses: a version that lacks one must be looked at."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import defaultdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.segment import Segment
from textual import _ansi_sequences, _compositor, _xterm_parser
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.css._style_properties import StringEnumProperty
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Region
from textual.strip import SGR_STYLES, Strip
from textual.widget import Widget
from textual.widgets import Input, OptionList, TextArea

import tui
from tui.terminal_image import _ATTRIBUTES

#: Private modules, with the names imported from them.
MODULES = {
    _ansi_sequences: {"ANSI_SEQUENCES_KEYS"},
    _compositor: {"ChopsUpdate", "CompositorUpdate", "LayoutUpdate"},
    _xterm_parser: {"XTermParser"},
}
#: Private names of classes.
NAMES: dict[type, set[str]] = {
    App: {
        *("_batch_count", "_close_messages_no_wait", "_closed", "_display", "_driver", "_exception"),
        *("_exception_event", "_exit", "_handle_exception", "_notifications", "_on_message"),
        *("_previous_cursor_position", "_return_code", "_running"),
    },
    Console: {"_color_system"},
    Input: {"_on_paste"},
    LinuxDriver: {
        *("_app", "_file", "_get_terminal_size", "_in_band_window_resize", "_mouse_pixels", "_run_input_thread"),
        "_size",
    },
    OptionList: {"_on_click"},
    Strip: {"_segments"},
    TextArea: {"_on_key", "_on_paste"},
    Widget: {"_box_model_cache", "_clear_arrangement_cache", "_nodes"},
    _xterm_parser.XTermParser: {"_awaiting", "_timeout_time"},
}


def private_names(kind: type) -> set[str]:
    """The private names that the libraries' classes among the bases of a class define or set."""
    bases = [base for base in kind.__mro__ if base.__module__.startswith(("textual", "rich"))]
    return set().union(*map(_defined_in, bases))


@cache
def _defined_in(base: type) -> frozenset[str]:
    names = re.findall(r"(?:self\.|def )(_[a-z]\w*)", inspect.getsource(base))
    return frozenset(names) | frozenset(getattr(base, "__slots__", ()))


def test_textual_has_every_private_name_that_is_used() -> None:
    missing = {f"{module.__name__}.{name}" for module, names in MODULES.items() for name in names - set(vars(module))}
    for kind, names in NAMES.items():
        missing |= {f"{kind.__module__}.{kind.__name__}.{name}" for name in names - private_names(kind)}
    assert not missing, f"Textual {version('textual')} lacks: {', '.join(sorted(missing))}"


def test_no_other_private_name_is_used() -> None:
    modules: dict[str, set[str]] = defaultdict(set)
    used: set[str] = set()
    for path in sorted(Path(tui.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(Path(tui.__file__).parents[1]).with_suffix("")
        own = importlib.import_module(".".join(place.parts).removesuffix(".__init__"))
        nodes = list(ast.walk(tree))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and re.match(r"textual\..*(?<=\.)_", f"{node.module}"):
                modules[f"{node.module}"] |= {alias.name for alias in node.names}
        for kind in tree.body:
            if isinstance(kind, ast.ClassDef):
                theirs = private_names(getattr(own, kind.name))
                used |= {name for node in ast.walk(kind) if (name := _own_name(node)) in theirs}
        set_here = {_own_name(node) for node in nodes}
        used |= {
            node.attr
            for node in nodes
            if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr) and node.attr not in set_here
        } - {"_exit" if path.name == "ending.py" else ""}
    assert dict(modules) == {module.__name__: names for module, names in MODULES.items()}
    assert used == {name for names in NAMES.values() for name in names}


def _own_name(node: ast.AST) -> str:
    """The name that a node defines or reads in the object of its class: of a method, of ``self.name``, of a field."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return node.name
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
        return node.attr
    return ""


def test_an_update_is_written_under_the_conditions_that_the_image_of_the_terminal_follows() -> None:
    source = inspect.getsource(App._display)
    assert list(inspect.signature(App._display).parameters) == ["self", "screen", "renderable"]
    for condition in ("if self._batch_count:", "self._running", "not self._closed", "not self.is_headless"):
        assert condition in source
    assert set(re.findall(r"self\.(\w+)", source.split("_begin_update")[0])) == {
        *("_batch_count", "_running", "_closed", "is_headless", "_driver", "console")
    }
    assert "self._previous_cursor_position = cursor_position" in source
    assert "renderable.render_segments(console)" in source


def test_updates_have_the_pieces_that_are_read() -> None:
    strip = Strip([Segment("ab")])
    layout = LayoutUpdate([[strip]], Region(0, 0, 2, 1))
    assert [list(row) for row in layout.strips] == [[strip]]
    assert layout.region == Region(0, 0, 2, 1)
    assert strip._segments == [Segment("ab")]
    assert list(inspect.signature(ChopsUpdate.__init__).parameters) == ["self", "chops", "spans", "chop_ends"]
    chops = ChopsUpdate([{0: strip}], [(0, 0, 2)], [[2]])
    assert (chops.chops, chops.spans, chops.chop_ends) == ([{0: strip}], [(0, 0, 2)], [[2]])


def test_styles_have_the_codes_that_pens_are_made_of() -> None:
    assert len(_ATTRIBUTES) == len(SGR_STYLES) == 13
    assert hasattr(Console(force_terminal=True), "_color_system")


def test_panes_are_placed_as_textual_places_widgets() -> None:
    assert callable(Widget._clear_arrangement_cache)
    # Effects of a widget's `display` besides a layout and a repaint.
    source = inspect.getsource(StringEnumProperty.__set__) + inspect.getsource(StringEnumProperty._before_refresh)
    assert "_nodes.updated()" in source
    assert callable(type(Widget()._nodes).updated)


def test_heights_are_kept_by_the_number_of_layout_updates() -> None:
    source = inspect.getsource(Widget._get_box_model)
    assert "self._layout_updates," in source
    assert "self._box_model_cache[cache_key] = model" in source
    assert "if layout and not self._layout_required:" in inspect.getsource(Widget.refresh)
