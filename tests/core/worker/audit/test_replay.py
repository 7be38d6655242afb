from __future__ import annotations

from datetime import datetime
from pathlib import Path

from core.runs.record.events import PhaseEvent, encode_event
from core.runs.record.store import Run
from core.worker.audit.replay import dated_name


def test_the_copy_of_a_run_has_the_date_of_the_run_renamed_or_not(tmp_path: Path) -> None:
    assert dated_name(Run(tmp_path / "20260304-050607-tickets")) == "20260304-050607-tickets"
    renamed = Run(tmp_path / "the-good-one")
    renamed.path.mkdir()
    began = datetime(2026, 3, 4, 5, 6, 7)
    renamed.events_path.write_text(encode_event(PhaseEvent(name="importing", t=began.timestamp())))
    assert Run(tmp_path / dated_name(renamed)).created == began
    assert Run(tmp_path / dated_name(Run(tmp_path / "empty"))).created is not None
