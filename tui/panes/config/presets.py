"""Presets in the config pane: the suggested one, and the changes by the one applied."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from core.config.document import ConfigDocument
from core.errors import UserError
from core.models.find import STARTER_NAME
from core.presets.switch import Switch

if TYPE_CHECKING:
    from core.presets.choose import Choice


def tell_switch(switch: Switch) -> str:
    """The changes that a preset has made, in half a sentence."""
    felt, kept = len(switch.felt), len(switch.kept)
    changed = f"{felt} option{'' if felt == 1 else 's'} changed" if felt else "nothing has another value"
    stays = f", {kept} kept as you wrote {'it' if kept == 1 else 'them'}" if kept else ""
    return f"preset {switch.preset.name}: {changed}{stays}"


def suitable(document: ConfigDocument) -> Choice:
    """The preset that suits model, card and data; slow, as it reads the driver, the model and the first rows.

    Raises:
        UserError: If the model is too large for the card.
    """
    from core.hardware.card import find_card
    from core.presets.begin import suitable_preset

    gpu = document.get("hardware.gpu")
    card = find_card(gpu=gpu if isinstance(gpu, str) else None) if document.get("hardware.device") != "cpu" else None
    base = document.get("model.base")
    directory = document.path.parent if document.path is not None else None
    rows = None
    # Without data model and card decide.
    with suppress(UserError):
        rows = document.validate()
    name = base if isinstance(base, str) else STARTER_NAME
    try:
        return suitable_preset(name, card, rows, directory=directory)
    except (UserError, OSError):
        # So they do with data that cannot be read; a model that is too large is refused again.
        return suitable_preset(name, card, None, directory=directory)
