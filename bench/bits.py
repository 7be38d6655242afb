"""The cost of 4 bits, layer by layer: the starter model on held-out tickets.

``python bench/bits.py`` measures as ``localtune-tui bits`` does and writes ``bench/results/bits-DATE.json``: losses and
divergences in nats over supervised tokens, seconds, and the highest resident memory of the process, beside the one that
is planned for the run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample_data
from core.config.document import load_config
from core.hardware.cpu import cpu_name
from core.memory.planner import make_plan
from core.models.find import locate_model
from core.models.sandboxed import load_architecture
from core.paths import home
from core.quantization.job import measure
from core.quantization.result import ROWS
from core.runs.outlook.forecast import this_machine

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    """Measure, print the sentence, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=ROWS)
    args = parser.parse_args()
    models = home() / "models"
    with tempfile.TemporaryDirectory() as directory:
        # A home of its own, so that no result of before is taken.
        (Path(directory) / "models").symlink_to(models)
        os.environ["LOCALTUNE_HOME"] = directory
        config = load_config(sample_data.path("tickets.toml"))
        plan = make_plan(load_architecture(locate_model(config.model.base)), config, this_machine(config))
        found = measure(config, lambda *_: None, rows=args.rows).to_dict()
    print(found["sentence"])
    result = {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        **{name: version(name) for name in ("torch", "transformers", "bitsandbytes")},
        "planned_run_bytes": plan.needed_bytes,
        **found,
    }
    path = RESULTS / f"bits-{datetime.date.today()}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
