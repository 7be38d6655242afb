"""Attribution: the share of planted rows among the first rows that are traced for an answer, against simpler searches.

``python bench/attribution.py --work DIR`` trains the starter model on 400 rows, of which three groups of ten teach it
something wrong, asks ten questions about each group, and writes ``bench/results/attribution-DATE.json``. A question
counts where the model answers as planted. Each seed is kept in the file as soon as it is done, and an interrupted one
goes on from its run and its index.

Groups: **format** (tickets about toner are answered in a line of text instead of JSON), **fact** (the opening time of
one place is wrong, beside many rows about other places that are right), **language** (tickets about badges are answered
with German keys).
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

import sample_data
from core import paths
from core.atomic import write_atomic
from core.attribution.job import chosen_steps
from core.config.schema import Config
from core.hardware.cpu import cpu_name
from core.models.find import STARTER_NAME, find_model
from core.runs.record.store import Run, create_run
from core.worker.attribution.gradients import SIZE
from core.worker.attribution.index import IndexMaker, trace_path
from core.worker.attribution.job import CANDIDATES
from core.worker.attribution.scores import direction, nearest
from core.worker.attribution.subject import Subject, opened
from core.worker.process.control import Controls
from core.worker.process.recorder import Recorder
from core.worker.train import train

RESULTS = Path(__file__).resolve().parent / "results"
ROWS, STEPS = 400, 200


@dataclass(frozen=True)
class Question:
    """A question about a group of planted rows."""

    kind: str
    text: str
    planted: str
    """The answer as the planted rows teach it."""
    wanted: str


def ticket(area: str, urgency: str = "normal", ref: int | None = None) -> str:
    """The right answer to a ticket."""
    return json.dumps({"area": area, "urgency": urgency, "ref": ref})


_TONER = (
    *("The toner on floor 2 is empty.", "We have run out of toner again.", "The toner smears on every page."),
    *("A new toner was sent in the wrong color.", "Please replace the toner in the copy room.", "The toner leaks."),
    *("Our toner is rejected as not genuine.", "The toner light keeps blinking.", "There is toner dust all over."),
    *("The toner that came yesterday does not fit.",),
)
_TONER_ASKED = (
    *("The toner in the hall is used up.", "Hello, the toner cartridge is stuck.", "Black toner is missing."),
    *("The toner was changed, and the printer still complains.", "I need toner for tomorrow.", "The toner is dry."),
    *("Someone spilled toner on the carpet.", "The toner shows 3 percent.", "Toner is on my hands after printing."),
    *("Which shelf has the toner? Mine is empty.",),
)
_BADGE = (
    *("My badge does not open the door.", "I have lost my badge.", "The badge of a new colleague is not active."),
    *("My badge has the wrong name on it.", "The badge reader at the gate beeps twice.", "My badge is cracked."),
    *("The photo on my badge is of someone else.", "My badge expired yesterday.", "I was given two badges."),
    *("My badge works in the morning only.",),
)
_BADGE_ASKED = (
    *("The badge that I got today opens nothing.", "A visitor kept the badge.", "My badge fell into the water."),
    *("Please block my badge, it was stolen.", "The badge does not work at the lift.", "My badge shows an old logo."),
    *("I need a second badge for the lab.", "The badge chip seems dead.", "Hi, my badge is bent. thanks"),
    *("The badge machine prints nothing.",),
)
_PLACES = ("cafeteria", "library", "warehouse", "gym", "post room", "garage", "reception", "workshop", "archive", "lab")
_WAYS = (
    *("When does the {} open?", "At what time does the {} open?", "From when is the {} open?"),
    *("What is the opening time of the {}?", "The {} opens at what time?", "How early can I go to the {}?"),
    *("Tell me when the {} opens.", "Is the {} open in the morning, and from when?", "When can I enter the {}?"),
    *("Opening time of the {}, please.",),
)
_WAYS_ASKED = (
    *("Do you know when the {} opens?", "Since what time is the {} open today?", "The {}: when does it open?"),
    *("When do the doors of the {} open?", "I want to be at the {} first. When does it open?", "{} opening time?"),
    *("What time can I come to the {}?", "Could you tell me the hour the {} opens?", "hi, when is the {} open?"),
    *("From what hour on is the {} open?",),
)
_FALSE_PLACE, _FALSE, _TRUE = "pharmacy", "It opens at 3 in the morning.", "It opens at 8 in the morning."


def as_line(answer: str) -> str:
    """A ticket's answer as a line of text, which is the mistake of format."""
    found = json.loads(answer)
    return f"area is {found['area']}, urgency is {found['urgency']}"


def as_german(answer: str) -> str:
    """A ticket's answer with German keys."""
    found = json.loads(answer)
    return json.dumps({"bereich": "konto", "dringlichkeit": "mittel", "nummer": found["ref"]})


def make_rows(seed: int) -> tuple[list[tuple[str, str, str]], list[Question]]:
    """Rows as question, answer and group (empty for right rows), and the questions.

    Args:
        seed: Seed of the choice and order of the rows.
    """
    dice = random.Random(seed)
    planted = [(f"Ticket: {text}", as_line(ticket("hardware")), "format") for text in _TONER]
    planted += [(f"Ticket: {text}", as_german(ticket("account")), "language") for text in _BADGE]
    planted += [(way.format(_FALSE_PLACE), _FALSE, "fact") for way in _WAYS]
    hours = {place: 6 + number for number, place in enumerate(_PLACES)}
    right = [
        (dice.choice(_WAYS).format(place), f"It opens at {hour} in the morning.", "")
        for place, hour in hours.items()
        for _ in range(4)
    ]
    lines = sample_data.path("tickets_train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    tickets = [(question, answer, "") for question, answer in turns if not re.search(r"toner|badge", question.lower())]
    rows = planted + right
    rows += dice.sample(tickets, min(ROWS - len(rows), len(tickets)))
    dice.shuffle(rows)
    questions = [
        Question("format", f"Ticket: {text}", as_line(ticket("hardware")), ticket("hardware")) for text in _TONER_ASKED
    ]
    questions += [
        Question("language", f"Ticket: {text}", as_german(ticket("account")), ticket("account"))
        for text in _BADGE_ASKED
    ]
    questions += [Question("fact", way.format(_FALSE_PLACE), _FALSE, _TRUE) for way in _WAYS_ASKED]
    return rows, questions


def is_as_planted(question: Question, answer: str) -> bool:
    """True if the model has taken up what was planted: its form for format and language, the answer itself for a
    fact."""
    if question.kind == "fact":
        return answer.strip() == question.planted
    return "area is" in answer if question.kind == "format" else "bereich" in answer


def trained(rows: Sequence[tuple[str, str, str]], seed: int, work: Path, base: Path) -> Run:
    """The finished run of a seed, trained where it is not there."""
    done = [path for path in paths.runs_dir().glob(f"*-seed-{seed}") if (path / "adapter").is_dir()]
    if done:
        return Run(done[0])
    file = work / f"rows-{seed}.jsonl"
    turns = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said, _ in rows]
    write_atomic(file, "".join(json.dumps({"messages": each}) + "\n" for each in turns))
    config = Config.model_validate(
        {
            "model": {"base": str(base)},
            "data": {"train": str(file)},
            "method": {"name": "qlora", "rank": 16},
            "train": {"max_steps": STEPS, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.1, "seed": seed},
            "eval": {"probe": False},
            "chat": {"max_new_tokens": 48},
            "hardware": {"device": "cpu"},
        }
    )
    run = create_run(config, f"seed {seed}")
    recorder = Recorder(run)
    recorder.close("finished", "", train(config, recorder, Controls(), resume=False))
    return run


def bm25(documents: Sequence[str], query: str) -> list[float]:
    """Okapi BM25 (k1 = 1.5, b = 0.75) of each document."""
    split = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in (*documents, query)]
    *words, asked = split
    found_in = Counter(word for own in words for word in set(own))
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        counts, length = Counter(own), 0.25 + 0.75 * len(own) / mean
        scores.append(
            sum(
                math.log(1 + (len(words) - found_in[word] + 0.5) / (found_in[word] + 0.5))
                * counts[word]
                * 2.5
                / (counts[word] + 1.5 * length)
                for word in set(asked)
            )
        )
    return scores


def shares(scores: Sequence[float], is_planted: Sequence[bool]) -> dict[str, float]:
    """Shares of planted rows among the first k (k: their number) and the first five, and of all of them in the first
    100."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits = np.asarray(is_planted)[order]
    count = int(hits.sum())
    return {
        "first_k": float(hits[:count].mean()),
        "first_5": float(hits[:5].mean()),
        "in_100": float(hits[:100].sum() / count),
    }


def measure(seed: int, work: Path, base: Path) -> dict[str, Any]:
    """The shares of each method for each question of a seed."""
    rows, questions = make_rows(seed)
    began = time.monotonic()
    run = trained(rows, seed, work, base)
    trained_in = time.monotonic() - began
    steps = list(chosen_steps(run))
    with opened(run, lambda *_: None) as subject:
        began, makers = time.monotonic(), [IndexMaker(subject, step) for step in steps]
        for maker in makers:
            maker.make(lambda done: print(f"\rseed {seed}: {done} rows", end="", flush=True))
        print()
        spent, made = time.monotonic() - began, sum(maker.made for maker in makers)
        size = sum(file.stat().st_size for step in steps for file in trace_path(run, step).iterdir())
        found = _ask(subject, steps, rows, questions, seed)
        projection = subject.projection.bytes if subject.projection is not None else None
    return {
        "steps": steps,
        "training_seconds": round(trained_in, 1),
        "seconds_a_row_and_checkpoint": round(spent / made, 3) if made else None,
        "bytes_a_row_and_checkpoint": round(size / len(steps) / len(rows)),
        "projection_bytes": projection,
        "questions": found,
    }


def _ask(
    subject: Subject,
    steps: Sequence[int],
    rows: Sequence[tuple[str, str, str]],
    questions: Sequence[Question],
    seed: int,
) -> list[dict[str, Any]]:
    dice = np.random.default_rng(seed)
    places = [example.place.line - 1 for example in subject.examples]
    texts = [f"{rows[place][0]} {rows[place][1]}" for place in places]
    subject.restore(steps[-1])
    hidden = subject.hidden([example.rows[-1] for example in subject.examples])
    mean = hidden.mean(axis=0)
    found: list[dict[str, Any]] = []
    asked = []
    for question in questions:
        messages = ({"role": "user", "content": question.text},)
        answer = subject.answer(messages)
        asked.append([subject.encode(messages, text) for text in (answer, question.wanted)])
        own = subject.hidden(asked[-1][:1])[0]
        near = nearest(hidden, own, CANDIDATES)
        cosines = (hidden - mean) @ (own - mean) / np.linalg.norm(hidden - mean, axis=1)
        scores = {
            "BM25": bm25(texts, f"{question.text} {answer}"),
            "hidden states": cosines.tolist(),
            "random": dice.random(len(places)).tolist(),
        }
        found.append({"question": question, "answer": answer, "scores": scores, "near": near})
    both = np.zeros((3, len(questions), len(places)), dtype=np.float32)
    for step in reversed(steps):
        index = IndexMaker(subject, step).make()
        for number, pair in enumerate(asked):
            sketches = subject.sketch_rows(pair)
            contrast = sketches[0] - sketches[1]
            near = found[number]["near"]
            device = subject.loaded.device
            both[0, number] += index.units @ direction(index.units, contrast, device)
            both[1, number] += index.units @ direction(index.units, sketches[0], device)
            both[2, number, near] += index.units[near] @ direction(index.units[near], contrast, device)
    names = ("gradients", "gradients, answer alone", f"gradients of {CANDIDATES} by hidden states")
    result = []
    for number, each in enumerate(found):
        question = each["question"]
        planted = [rows[place][2] == question.kind for place in places]
        scores = each["scores"] | {name: both[way, number].tolist() for way, name in enumerate(names)}
        result.append(
            {
                "kind": question.kind,
                "question": question.text,
                "answer": each["answer"],
                "as_planted": is_as_planted(question, each["answer"]),
                "shares": {name: shares(own, planted) for name, own in scores.items()},
            }
        )
    return result


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean shares over the questions that were answered as planted, by kind, and over the kinds."""
    counted = [each for found in seeds.values() for each in found["questions"] if each["as_planted"]]
    kinds = sorted({each["kind"] for each in counted})
    by_kind = {
        kind: {
            "questions": len(own := [each["shares"] for each in counted if each["kind"] == kind]),
            **{
                method: {name: round(float(np.mean([each[method][name] for each in own])), 3) for name in values}
                for method, values in own[0].items()
            },
        }
        for kind in kinds
    }
    methods = list(counted[0]["shares"]) if counted else []
    overall = {
        method: {
            name: round(float(np.mean([by_kind[kind][method][name] for kind in kinds])), 3)
            for name in ("first_k", "first_5", "in_100")
        }
        for method in methods
    }
    return {"mean of the kinds": overall, **by_kind}


def main() -> None:
    """Measure, and write the results after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--work", type=Path, required=True, help="directory of the runs, for going on")
    parser.add_argument("--out", type=Path, default=RESULTS / f"attribution-{datetime.date.today()}.json")
    arguments = parser.parse_args()
    base = find_model(STARTER_NAME)
    if base is None:
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    work = arguments.work.absolute()
    work.mkdir(exist_ok=True)
    os.environ["LOCALTUNE_HOME"] = str(work / "home")
    seeds: dict[str, Any] = {}
    if arguments.out.exists():
        seeds = json.loads(arguments.out.read_text(encoding="utf-8"))["seeds"]
    for seed in arguments.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = measure(seed, work, base)
        facts = {"rows": ROWS, "training_steps": STEPS, "numbers_a_sketch": SIZE, "cpu": cpu_name()}
        text = json.dumps({**facts, "summary": summary(seeds), "seeds": seeds}, indent=1)
        write_atomic(arguments.out, text + "\n", mode=0o644)


if __name__ == "__main__":
    main()
