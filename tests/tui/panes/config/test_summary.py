"""The summary of a configuration above its options."""

from __future__ import annotations

from core.config.document import ConfigDocument
from tui.panes.config.model import ConfigModel


def test_the_rank_is_told_where_there_are_adapters() -> None:
    assert "qlora rank 16" in ConfigModel(ConfigDocument("")).summary({})
    assert "full · no training data" in ConfigModel(ConfigDocument('method.name = "full"\n')).summary({})
