"""Loss curve of the self-test: the first steps on the sample data, on the CPU in fp32, by the worker itself.

``python bench/loss_curve.py`` writes ``core/selftest/loss_curve.json``, which is shipped. Record it anew when the
sample data, the starter model or the configuration in ``core/selftest/curve.py`` changes, and only then: it is there so
that later versions and other devices learn the same.
"""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.hardware.cpu import cpu_name
from core.models.find import STARTER_NAME
from core.selftest.curve import FILE, LossCurve, curve_config
from core.selftest.sizes import Sizes
from core.worker.selftest.check import Bench
from core.worker.selftest.worker_run import WorkerRun

#: Decimals of a loss: more than another CPU's rounding leaves alike.
DECIMALS = 5
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def main() -> None:
    """Record the curve, and say how far it is from the one before."""
    sizes = Sizes(device="cpu")
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), sizes, {}, lambda activity, done, _: print(activity, done or "", flush=True))
        config = curve_config(STARTER_NAME, sizes.curve_steps, device="cpu", precision="fp32")
        run = WorkerRun(bench, "curve", config)
        run.train()
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    recorded = f"{datetime.date.today().isoformat()}, fp32 on {cpu_name()}, {libraries}"
    if FILE.exists():
        deviation = LossCurve.shipped().deviation(run.losses)
        print(f"from the one before: {deviation.most:.2%} at most, {deviation.mean:.2%} in the mean")
    losses = [round(loss, DECIMALS) for loss in run.losses]
    FILE.write_text(json.dumps({"recorded": recorded, "losses": losses}, indent=2) + "\n", encoding="utf-8")
    print(f"{FILE}: {losses}")


if __name__ == "__main__":
    main()
