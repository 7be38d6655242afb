from __future__ import annotations

from pathlib import Path

import pytest

from core.audit.job import AuditJob
from core.config.schema import Config
from core.errors import UserError
from core.runs.process import hostname, own_identity
from core.runs.state import RunState
from core.runs.store import create_run


def test_a_live_run_is_refused(tmp_path: Path) -> None:
    config = Config.model_validate({"model": {"base": "tiny"}, "data": {"train": str(tmp_path / "rows.jsonl")}})
    run = create_run(config, "live")
    pid, identity = own_identity()
    RunState(state="training", pid=pid, pid_started=identity, host=hostname()).write(run.state_path)
    with pytest.raises(UserError, match="only a run that is over can be verified"):
        AuditJob(run, spans=1, seed=1).run()
