"""The chat engine beside a run on a machine with little free memory: it asks before it loads, and before it answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from core.chat.engine import ModelSpec
from core.chat.request import ChatRequest, GenerationSettings
from core.errors import UserError
from tests.core.worker.crowded import crowded_engine, end_run, run_on_cpu
from tests.progress import quiet

ASK = ChatRequest([{"role": "user", "content": "the ticket"}], settings=GenerationSettings(3))
LITTLE, MUCH = "1000", str(1 << 40)


def test_what_does_not_fit_beside_a_run_is_refused_and_the_engine_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    run, free = run_on_cpu(), tmp_path / "free"
    spec = ModelSpec(str(tiny_model_dir), precision="fp32", device="cpu")
    free.write_text(LITTLE)
    with crowded_engine("core.worker.generate.chat_engine", free) as engine:
        crowded = re.escape(
            f"Run {run.id} trains on the same device, where 1.0 kB are free, and the model takes about "
        )
        with pytest.raises(UserError, match=crowded):
            engine.load(spec, quiet)
        with pytest.raises(UserError, match="No model is loaded"):
            list(engine.generate(ASK))
        free.write_text(MUCH)
        engine.load(spec, quiet)
        free.write_text(LITTLE)
        beside = re.escape(f"1.0 kB are free on this machine beside run {run.id}.")
        with pytest.raises(UserError, match=rf"The answer takes up to .* and {beside}"):
            list(engine.generate(ASK))
        free.write_text(MUCH)
        assert list(engine.generate(ASK))[-1]["tokens"] == 3
        # Without a run nobody is harmed.
        end_run(run)
        free.write_text(LITTLE)
        assert list(engine.generate(ASK))[-1]["tokens"] == 3
        engine.load(spec, quiet)
