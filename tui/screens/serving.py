"""Screen of the server: address, key and model for clients, and a key to stop it."""

from __future__ import annotations

from collections.abc import Container

from textual import events
from textual.app import ComposeResult
from textual.content import Content

from core.text import one_line
from tui.screens.box import OverlayBox
from tui.screens.overlay import Overlay, key_line
from tui.shell import copy_text
from tui.state import ServingView
from tui.widgets.text_block import TextBlock

STOP = "stop"
_WIDTH = 11


def lines_to_paste(view: ServingView) -> str:
    """Shell lines with the environment variables of OpenAI's client; empty until the server is up."""
    if view.address is None:
        return ""
    return f"export OPENAI_BASE_URL={view.address.url}\nexport OPENAI_API_KEY={view.address.key}"


class ServeScreen(Overlay[str]):
    """The server's state; dismissed with :data:`STOP` to end it, otherwise it stays up.

    Args:
        view: The server.
    """

    HELP = "serve"

    def __init__(self, view: ServingView) -> None:
        super().__init__()
        self._view = view
        self._said = ""

    @property
    def known_keys(self) -> Container[str]:
        """Keys with a function on this screen."""
        return {*self.active_bindings, "escape", "q", "W", "x", *self._copyable}

    def compose(self) -> ComposeResult:
        """A scrolling text with the keys in its border."""
        yield OverlayBox(TextBlock(), title="Serve", width=100)

    def on_mount(self) -> None:
        """Show the server."""
        self._show()

    def show(self, view: ServingView) -> None:
        """Show the server's new state."""
        self._view, self._said = view, ""
        if self.is_attached:
            self._show()

    def on_key(self, event: events.Key) -> None:
        """Leave, stop, or copy."""
        copied = self._copyable.get(event.key)
        if event.key in ("escape", "q", "W"):
            self.dismiss("")
        elif event.key == "x":
            self.dismiss(STOP)
        elif copied is not None:
            what, text = copied
            self._said = copy_text(self, text, what)
            self._show()
        else:
            return
        event.stop()

    @property
    def _copyable(self) -> dict[str, tuple[str, str]]:
        """Keys that copy, with the name of the copied text and the text."""
        address, error = self._view.address, self._view.error
        if error is not None:
            return {"y": ("error", str(error))}
        if address is None:
            return {}
        return {
            "u": ("base URL", address.url),
            "y": ("key", address.key),
            "m": ("model", address.models[0]),
            "c": ("lines", lines_to_paste(self._view)),
        }

    def _show(self) -> None:
        self.query_one(TextBlock).show(self._text())
        is_over = self._view.error is not None
        if is_over:
            keys = [("y", "copy"), ("esc", "close")]
        else:
            keys = [("c", "copy the lines"), ("u", "URL"), ("y", "key"), ("m", "model")] if self._copyable else []
            keys += [("x", "stop"), ("esc", "keep running")]
        self.query_one(OverlayBox).show_keys(key_line(keys))

    def _text(self) -> Content:
        view = self._view
        name = one_line(view.name, 80)
        if view.error is not None:
            lines = [Content.styled(f"✗ {name} is not served", "$limit"), Content("")]
            lines += [Content(one_line(str(view.error), 800)), Content(""), Content.styled(self._said, "$ok")]
            return Content("\n").join(lines)
        if view.address is None:
            return Content(f"◌ The server for {name} is starting …")
        address = view.address
        lines = [
            Content.styled(f"● {name} is served to programs on this machine", "$ok"),
            Content(""),
            _fact("base URL", address.url),
            _fact("key", address.key),
            *(_fact("model" if not place else "", model) for place, model in enumerate(address.models)),
            Content(""),
            Content.styled("For programs that speak OpenAI's API; in a shell:", "$muted"),
            Content(lines_to_paste(view)),
            Content(""),
            Content.styled("The model is loaded with the first question. The server ends with the app.", "$muted"),
        ]
        # The last line is always there, so that the box keeps its height.
        news = Content.styled(self._said, "$ok") if self._said else Content(one_line(view.progress, 200))
        return Content("\n").join([*lines, news])


def _fact(name: str, value: str) -> Content:
    return Content.assemble((f"{name:<{_WIDTH}}", "$muted"), one_line(value, 300))
