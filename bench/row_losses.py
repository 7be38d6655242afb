"""Wrong labels among the rows that a run has not learned, measured: how many does a look at the worst rows find?

``python bench/row_losses.py`` gives 20 of the 400 sample tickets another area, trains the starter model on them as the
sample configuration says, and measures the loss of each row with the result. It prints the area under the ROC curve
(the probability that a wrong row has a higher loss than a right one), how many of the 20 are among the worst rows, and
for how many of these the model's own answer has the true area. ``--json FILE`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import sample_data
from core import paths
from core.config.document import load_config
from core.evaluation.row_losses import RowLosses, row_losses_job
from core.launch.launcher import start_run
from core.runs.record.store import Run

FLIPPED = 20
_AREAS = ("account", "billing", "hardware", "network", "shipping")
#: Numbers of worst rows that are looked at.
_LOOKS = (20, 40)


def flip(source: Path, target: Path, count: int, seed: int) -> dict[int, str]:
    """Write the tickets with another area in some rows; returns the true areas by line."""
    dice = random.Random(seed)
    lines = source.read_text(encoding="utf-8").splitlines()
    chosen = dice.sample(range(len(lines)), count)
    true = {}
    for at in chosen:
        row = json.loads(lines[at])
        answer = json.loads(row["messages"][-1]["content"])
        true[at + 1] = answer["area"]
        answer["area"] = dice.choice([area for area in _AREAS if area != answer["area"]])
        row["messages"][-1]["content"] = json.dumps(answer)
        lines[at] = json.dumps(row, ensure_ascii=False)
    target.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return true


def wait(run: Run) -> None:
    """Wait for the end of a run."""
    while not (state := run.state()).is_over:
        print(f"step {state.step} of {state.total_steps}", file=sys.stderr, flush=True)
        time.sleep(15)
    if state.state != "finished":
        raise SystemExit(f"the run {state.state}: {state.reason}")


def figures(found: RowLosses, true: dict[int, str]) -> dict[str, Any]:
    """Area under the curve, and wrong rows among the worst."""
    losses = {line: loss for rows in found.rows.values() for line, loss, _ in rows}
    wrong = [losses[line] for line in true]
    right = [loss for line, loss in losses.items() if line not in true]
    above = sum((bad > good) + (bad == good) / 2 for bad in wrong for good in right)
    hits = {str(look): sum(row.line in true for row in found.worst[:look]) for look in _LOOKS}
    told = [row for row in found.worst if row.line in true and row.own is not None]
    return {
        "auc": round(above / (len(wrong) * len(right)), 4),
        "in_worst": hits,
        "own_answer_has_true_area": sum(f'"{true[row.line]}"' in (row.own or "") for row in told),
        "mean_loss": {"wrong": sum(wrong) / len(wrong), "right": sum(right) / len(right)},
        "rows": len(losses),
    }


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the flipped labels")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the run")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        models = paths.models_dir()
        home, rows = Path(name) / "home", Path(name) / "tickets_flipped.jsonl"
        home.mkdir()
        (home / "models").symlink_to(models)
        os.environ["LOCALTUNE_HOME"] = str(home)
        true = flip(Path(sample_data.path("tickets_train.jsonl")), rows, FLIPPED, args.seed)
        options = [f"data.train={rows}", "eval.baseline=false", "eval.exact_match=false", *args.set]
        config = load_config(sample_data.path("tickets.toml"), options)
        began = time.monotonic()
        run = start_run(config, "flipped")
        wait(run)
        trained = time.monotonic() - began
        began = time.monotonic()
        found = row_losses_job(run).run(lambda at: print(at.activity, at.done, at.total, file=sys.stderr, flush=True))
        seconds = {"training": round(trained, 1), "measurement": round(time.monotonic() - began, 1)}
        result = {"seed": args.seed, "flipped": FLIPPED, "step": found.step, **figures(found, true), "seconds": seconds}
    print(json.dumps(result, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
