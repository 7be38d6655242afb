"""Chat with a model in training: what questions cost the training, and how long an answer waits for its step.

``python bench/chat_while_training.py`` trains the starter model on the sample, in turns without questions and with one
question after another, and prints trained tokens a second of wall time in each turn, and the answers' times. Values go
to ``bench/results/chat-while-training-DATE.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_QUESTION = "My invoice shows the wrong amount for the second month in a row. What should I do?"


@dataclass(frozen=True)
class Turn:
    """A stretch of training."""

    asked: bool
    tokens_per_second: float
    """Trained tokens over wall time, questions included."""
    first_token_seconds: tuple[float, ...] = ()
    """From each question to the first token of its answer: it waits for the end of a step."""
    answer_tokens: int = 0


def steps(run: Path) -> list[tuple[float, int]]:
    """Time and tokens of each optimizer step so far."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["type"] == "step":
                found.append((event["t"], event["tokens"]))
    return found


def measure(run: Path, seconds: float, tokens: int | None) -> Turn:
    """Turn with questions of a bounded answer length, or without questions."""
    from core.chat.request import GenerationSettings
    from core.chat.session import Answer, open_session

    begun = len(steps(run))
    ended, first, count = time.monotonic() + seconds, [], 0
    if tokens is None:
        while time.monotonic() < ended:
            time.sleep(0.1)
    else:
        session = open_session(run)
        messages = [{"role": "user", "content": _QUESTION}]
        while time.monotonic() < ended:
            asked = time.monotonic()
            for piece in session.generate(messages, "tuned", GenerationSettings(tokens)):
                if isinstance(piece, Answer):
                    count += piece.tokens
                elif asked:
                    first.append(time.monotonic() - asked)
                    asked = 0.0
        session.close()
    done = steps(run)[begun:]
    elapsed = done[-1][0] - done[0][0] if len(done) > 2 else 0.0
    rate = sum(size for _, size in done[1:]) / elapsed if elapsed else 0.0
    return Turn(tokens is not None, rate, tuple(first), count)


def train(home: Path, rounds: int, seconds: float, tokens: int) -> list[Turn]:
    """Train, and measure in turns."""
    models = Path(os.environ.get("LOCALTUNE_HOME", Path.home() / ".local/share/localtune")) / "models"
    home.mkdir()
    (home / "models").symlink_to(models)
    environment = {**os.environ, "LOCALTUNE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tui", "train", str(ROOT / "sample_data/tickets.toml")]
    for setting in ("train.max_steps=100000", "checkpoint.every_steps=100000", "eval.baseline=false"):
        command += ["--set", setting]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, start_new_session=True, **quiet) as process:
        try:
            while not (runs := list(home.glob("runs/*"))) or len(steps(runs[0])) < 3:
                if process.poll() is not None:
                    raise SystemExit("The training ended before it began; try it with localtune-tui train.")
                time.sleep(0.1)
            return [measure(runs[0], seconds, wanted) for _ in range(rounds) for wanted in (None, tokens)]
        finally:
            for state in home.glob("runs/*/state.json"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(json.loads(state.read_text(encoding="utf-8"))["pid"], 9)
            process.kill()


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer at most")
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        turns = train(Path(directory) / "home", options.rounds, options.seconds, options.tokens)
    for asked in (False, True):
        rate = statistics.median(turn.tokens_per_second for turn in turns if turn.asked is asked)
        print(f"{'with questions' if asked else 'without'}: {rate:.1f} trained tokens/s")
    waits = [wait for turn in turns for wait in turn.first_token_seconds]
    if waits:
        print(
            f"first token after {statistics.median(waits):.2f} s (median of {len(waits)}), {max(waits):.2f} s at most"
        )
    kept = {"cores": os.cpu_count(), "machine": platform.machine(), "turns": [asdict(turn) for turn in turns]}
    options.results.mkdir(parents=True, exist_ok=True)
    name = f"chat-while-training-{datetime.date.today().isoformat()}.json"
    (options.results / name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
