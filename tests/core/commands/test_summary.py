"""What a run came to, whatever its record says."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.commands.follow import Followed
from core.commands.summary import adapter_of
from core.runs.events import FinishedEvent
from core.runs.state import RunState
from core.runs.store import Run


@pytest.mark.parametrize(
    ("adapter", "told"),
    [("adapter", "adapter"), ("checkpoints/step-1/adapter", "checkpoints/step-1/adapter"), ("/etc", None),
     ("../other/adapter", None), ("a/../../b", None), ("a\0b", None), ("", None), (None, None)],
)  # fmt: skip
def test_an_adapter_is_in_its_run(tmp_path: Path, adapter: str | None, told: str | None) -> None:
    followed = Followed(Run(tmp_path), RunState(state="finished"))
    followed.apply(FinishedEvent(reason="", step=1, adapter=adapter))
    assert adapter_of(followed) == (told and str(tmp_path / told))
