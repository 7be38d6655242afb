"""Presets in the config pane: chosen, applied, and what differs from the one in force."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from core.config.document import ConfigDocument
from core.config.facts import Facts, read_shape
from core.errors import UserError
from core.models.find import STARTER_NAME
from core.presets.choose import choose_preset
from core.presets.library import Preset
from core.presets.switch import Switch, apply_switch, preset_in
from tui.panes.config.facts import ConfigFacts

if TYPE_CHECKING:
    from core.presets.choose import Choice


class ConfigPresets(ConfigFacts):
    """A pane with presets."""

    @property
    def preset(self) -> Preset | None:
        """The preset that the configuration names."""
        return preset_in(self.document)

    def action_presets(self) -> None:
        """Choose a preset; what it would change is shown first."""
        from tui.screens.presets import PresetScreen

        self.commit_open()
        # A document of its own, as a thread looks at it too.
        document = ConfigDocument(self.document.dumps(), self.document.path)
        self.app.push_screen(PresetScreen(document, lambda: suitable(document)), self._preset_chosen)

    def _preset_chosen(self, switch: Switch | None) -> None:
        if switch is None:
            return
        name = switch.preset.name
        try:
            apply_switch(self.document, switch)
        except UserError as error:
            self.say(f"✗ {error}")
            return
        felt, kept = len(switch.felt), len(switch.kept)
        changed = f"{felt} option{'' if felt == 1 else 's'} changed" if felt else "nothing has another value"
        stays = f", {kept} kept as you wrote {'it' if kept == 1 else 'them'}" if kept else ""
        self.edited(
            f"preset {name}", f"✓ preset {name}: {changed}{stays}; {self.keys['config.undo'].display} undoes it"
        )


def suitable(document: ConfigDocument) -> Choice:
    """The preset that suits model, card and data; driver, model and the first rows are asked, which takes a while.

    Raises:
        UserError: If the model is too large for the card.
    """
    from core.analysis.row_lengths import sample_lengths
    from core.hardware.card import find_card

    card = find_card() if document.get("hardware.device") != "cpu" else None
    base = document.get("model.base")
    directory = document.path.parent if document.path is not None else None
    lengths: list[int] = []
    # Without data, or with data that cannot be read, model and card decide.
    with suppress(UserError, OSError):
        lengths = sample_lengths(document.validate())
    return choose_preset(
        Facts(
            model=read_shape(base if isinstance(base, str) else STARTER_NAME, directory),
            device_bytes=card.memory_total if card is not None else None,
        ),
        lengths=lengths,
        card_name=f"the {card.name}" if card is not None else "the card",
    )
