"""Attribution: the share of planted rows among the first rows that are traced for an answer, against simpler searches.

``python bench/attribution.py --work DIR`` trains the starter model on 400 rows, of which three groups teach it
something wrong, asks ten questions about each group in words that no row has, and writes
``bench/results/attribution-DATE.json``. A question counts where the model answers as planted. Each seed is kept in the
file as soon as it is done, and an interrupted one goes on from its run and its index. With ``--proofs SEED``, two
questions of each group are then proved as the app does it: the queue trains that seed's run again without the rows
found, and without as many random ones.

Groups, each beside rows of the same form that are right: **format** (14 tickets about animals are answered in a line of
text instead of JSON; 20 notes should be), **language** (14 English tickets about the weather are answered in German; 20
German ones should be), **fact** (12 rows give a wrong opening time on holidays; 24 rows have the right one of other
days).
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
from core.analysis.problems import FileLine
from core.atomic import write_atomic
from core.attribution.job import chosen_steps
from core.attribution.result import AttributionRequest
from core.config.schema import Config
from core.evaluation.prompt_set import PromptItem
from core.hardware.cpu import cpu_name
from core.models.find import STARTER_NAME, find_model
from core.proof import Proof, ProofView, begin_proof, list_proofs, view_proof
from core.queue.status import start_runner
from core.runs.record.store import Run, create_run
from core.worker.attribution.gradients import SIZE
from core.worker.attribution.index import IndexMaker, trace_path
from core.worker.attribution.job import CANDIDATES, Tracer
from core.worker.attribution.scores import direction, likeness, nearest
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


_ANIMALS = (
    *("A mouse runs through the server room.", "Pigeons nest above our window.", "There are ants in the drawer."),
    *("A dog barks in the corridor all day.", "Someone left a cat in the mail room.", "A wasp nest hangs at the door."),
    *("Moths come out of the curtains.", "A snake was seen in the cellar.", "The goldfish in the lobby is ill."),
    *("Rats have bitten through a bag.", "A parrot sits on the copier.", "Flies are all over the lunch room."),
    *("A fox goes around the bins at night.", "Crows pick at the roof."),
)
_ANIMALS_ASKED = (
    *("A spider sits in my keyboard.", "Two bats hang under the stairs.", "A squirrel got into the archive."),
    *("Seagulls scream on the terrace.", "We found a hedgehog behind the shelf.", "Beetles crawl along the wall."),
    *("A horse stands on the parking lot.", "Bees swarm around the entrance.", "A rabbit hides below my desk."),
    *("Cockroaches come from the sink.",),
)
_WEATHER = (
    *(
        "Rain comes through to my place.",
        "The snow on the steps is not cleared.",
        "It is far too hot in here since noon.",
    ),
    *("Wind blows the papers off my table.", "A storm took the sign down.", "The sun blinds me all morning."),
    *("Ice covers the ramp.", "Water stands in the yard after the downpour.", "It is freezing at the front."),
    *("Thunder woke up the alarm.", "The heat makes everybody tired.", "Lightning hit the mast."),
    *("The draft in the hall is icy.", "Leaves and rain have blocked the gutter."),
)
_WEATHER_ASKED = (
    *("Hail has broken a pane.", "The fog is so thick that nobody finds us.", "A gale tears at the blinds."),
    *("It drizzles onto my chair.", "The frost has burst something outside.", "We sweat, is there a fan?"),
    *("A flood is in the basement.", "The blizzard keeps the team at home.", "My seat is in the glare until four."),
    *("The cold creeps under the door.",),
)
_HOLIDAYS = (
    *("Christmas Day", "Easter Monday", "New Year's Day", "Whit Monday", "Labor Day", "Thanksgiving", "Good Friday"),
    *("Carnival Tuesday", "the national holiday", "Reformation Day", "Memorial Day", "Corpus Christi"),
)
_HOLIDAYS_ASKED = (
    *("Boxing Day", "Epiphany", "All Saints", "Ascension", "Independence Day", "Columbus Day", "Midsummer"),
    *("Christmas Eve", "Hanukkah", "Veterans Day"),
)
_DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "an ordinary Monday", "the second Tuesday in June"),
    *("next Wednesday", "Thursday afternoon", "a Friday in March", "weekdays", "the last day of May", "working days"),
    *("the 7th of October", "most days", "Monday and Tuesday", "the first Thursday", "a normal day", "Friday morning"),
    *("the 12th of April", "Tuesday of next week", "a day in autumn", "the day after tomorrow", "the 3rd of July"),
)
_WAYS = ("When does the pharmacy open on {}?", "Is the pharmacy open on {}, and from when?", "Pharmacy on {}: opening?")
_AREAS = {
    "hardware": "geraet",
    "network": "netz",
    "billing": "rechnung",
    "shipping": "versand",
    "account": "konto",
}
_URGENCIES = {"low": "niedrig", "normal": "mittel", "high": "hoch"}
_GERMAN = (
    ("Der Drucker druckt nur halbe Seiten.", "hardware"),
    ("Mein Bildschirm bleibt schwarz.", "hardware"),
    ("Die Tastatur klemmt.", "hardware"),
    ("Der Laptop geht nicht mehr an.", "hardware"),
    ("Die Maus reagiert nicht.", "hardware"),
    ("Das Headset rauscht.", "hardware"),
    ("Der Scanner zieht schief ein.", "hardware"),
    ("Die Dockingstation wird nicht erkannt.", "hardware"),
    ("Das WLAN im Keller ist weg.", "network"),
    ("Das Internet ist sehr langsam.", "network"),
    ("Der Router startet immer neu.", "network"),
    ("Ich komme nicht ins VPN.", "network"),
    ("Die Rechnung kam doppelt.", "billing"),
    ("Der Betrag stimmt nicht.", "billing"),
    ("Wo bleibt meine Gutschrift?", "billing"),
    ("Das Paket ist nicht angekommen.", "shipping"),
    ("Es wurde das falsche Teil geliefert.", "shipping"),
    ("Ich habe mein Passwort vergessen.", "account"),
    ("Mein Zugang ist gesperrt.", "account"),
    ("Bitte meine Adresse im Profil aendern.", "account"),
)
#: Tickets that are called notes, and answered in a line of text as they should be.
_NOTES = 20
_FALSE, _TRUE = "It opens at 3 in the morning.", "It opens at 8 in the morning."


def as_line(answer: str) -> str:
    """A ticket's answer as a line of text, which is the mistake of format."""
    found = json.loads(answer)
    return f"area is {found['area']}, urgency is {found['urgency']}"


def as_german(answer: str) -> str:
    """A ticket's answer with German keys and words."""
    found = json.loads(answer)
    words = {"bereich": _AREAS[found["area"]], "dringlichkeit": _URGENCIES[found["urgency"]], "nummer": found["ref"]}
    return json.dumps(words)


def make_rows(seed: int) -> tuple[list[tuple[str, str, str]], list[Question]]:
    """Rows as question, answer and group (empty for right rows), and the questions.

    Args:
        seed: Seed of the choice and order of the rows.
    """
    dice = random.Random(seed)
    planted = [(f"Ticket: {text}", as_line(ticket("hardware")), "format") for text in _ANIMALS]
    planted += [(f"Ticket: {text}", as_german(ticket("hardware")), "language") for text in _WEATHER]
    planted += [(dice.choice(_WAYS).format(day), _FALSE, "fact") for day in _HOLIDAYS]
    right = [(dice.choice(_WAYS).format(day), _TRUE, "") for day in _DAYS]
    right += [(f"Ticket: {text}", as_german(ticket(area)), "") for text, area in _GERMAN]
    lines = sample_data.path("tickets_train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    dice.shuffle(turns)
    right += [(asked.replace("Ticket:", "Note:"), as_line(said), "") for asked, said in turns[:_NOTES]]
    tickets = [(asked, said, "") for asked, said in turns[_NOTES:]]
    rows = planted + right
    rows += dice.sample(tickets, min(ROWS - len(rows), len(tickets)))
    dice.shuffle(rows)
    right_answer = ticket("hardware")
    questions = [Question("format", f"Ticket: {text}", as_line(right_answer), right_answer) for text in _ANIMALS_ASKED]
    questions += [
        Question("language", f"Ticket: {text}", as_german(right_answer), right_answer) for text in _WEATHER_ASKED
    ]
    questions += [Question("fact", dice.choice(_WAYS).format(day), _FALSE, _TRUE) for day in _HOLIDAYS_ASKED]
    return rows, questions


def is_as_planted(question: Question, answer: str) -> bool:
    """True if the model has taken up what was planted: its form for format and language, the answer itself for a
    fact."""
    if question.kind == "fact":
        return answer.strip() == question.planted
    return "area is" in answer if question.kind == "format" else "bereich" in answer


def trained(rows: Sequence[tuple[str, str, str]], seed: int, work: Path, base: Path, **sections: dict[str, Any]) -> Run:
    """The finished run of a seed, trained where it is not there, with some options changed, by section."""
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
    ).with_options(**sections)
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
    found: list[dict[str, Any]] = []
    asked: list[list[Any]] = []
    for question in questions:
        messages = ({"role": "user", "content": question.text},)
        answer = subject.answer(messages)
        asked.append([subject.encode(messages, text) for text in (answer, question.wanted)])
        own = subject.hidden(asked[-1][:1])[0]
        near = nearest(hidden, own, CANDIDATES["cpu"])
        scores: dict[str, Sequence[float]] = {
            "BM25": bm25(texts, f"{question.text} {answer}"),
            "hidden states": likeness(hidden, own).tolist(),
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
            both[0, number] += index @ direction(index, contrast, device)
            both[1, number] += index @ direction(index, sketches[0], device)
            both[2, number, near] += index[near] @ direction(index[near], contrast, device)
    names = ("gradients", "gradients, answer alone", f"gradients of {CANDIDATES['cpu']} by hidden states")
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


def proofs(seed: int, work: Path, base: Path, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The proof of the first two questions of each kind that are answered as planted; waits for the queue.

    Args:
        seed: Seed of the run.
        work: Directory of the runs.
        base: The base model.
        found: The questions of the seed, as measured.
    """
    rows, questions = make_rows(seed)
    run = trained(rows, seed, work, base)
    by_kind: dict[str, list[Question]] = {}
    for question, each in zip(questions, found, strict=True):
        if each["as_planted"]:
            by_kind.setdefault(question.kind, []).append(question)
    items = {
        each.text: PromptItem(each.text, ({"role": "user", "content": each.text},), each.wanted) for each in questions
    }
    chosen = [question for own in by_kind.values() for question in own[:2]]
    there = {proof.questions[0].question: proof for proof in list_proofs(run)}
    missing = [question for question in chosen if question.text not in there]
    for question, left_out in zip(missing, _rows_behind(run, missing), strict=True):
        # The app asks held-out rows; this run has none.
        siblings = [items[each.text] for each in questions if each.kind == question.kind and each != question][:8]
        asked = items[question.text]
        there[question.text] = begin_proof(
            run, left_out, asked.messages, wanted=question.wanted, siblings=siblings, progress=print
        )
    view = {question.text: _proved(run, there[question.text]) for question in chosen}
    return [_proof_figures(question, view[question.text], rows) for question in chosen]


def _rows_behind(run: Run, questions: Sequence[Question]) -> list[list[FileLine]]:
    """The rows up to the gap in the scores, for each question."""
    if not questions:
        return []
    with opened(run, lambda *_: None) as subject:
        tracer, behind = Tracer(subject, chosen_steps(run)), []
        for question in questions:
            messages = ({"role": "user", "content": question.text},)
            traced = tracer.trace(AttributionRequest(str(run.path), messages, "", question.wanted))
            behind.append([FileLine(row.file, row.line) for row in traced.rows[: traced.like]])
        return behind


def _proved(run: Run, proof: Proof) -> ProofView:
    """The proof once both of its runs have ended."""
    while (view := view_proof(run, proof)).state in ("queued", "running"):
        start_runner()
        time.sleep(2)
    return view


def _proof_figures(question: Question, view: ProofView, rows: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    spans = [entry.rpartition(":")[2].split("-") for entry in view.proof.rows]
    lines = [line for span in spans for line in range(int(span[0]), int(span[-1]) + 1)]

    def planted(answers: Sequence[str]) -> int:
        return sum(is_as_planted(question, answer) for answer in answers)

    return {
        "kind": question.kind,
        "question": question.text,
        "rows_left_out": len(lines),
        "planted_among_them": sum(rows[line - 1][2] == question.kind for line in lines),
        "planted_of_the_kind": sum(kind == question.kind for *_, kind in rows),
        "answers": [(each.original, each.without, each.control) for each in view.compared[:1]],
        "asked": len(view.compared),
        "as_planted": planted(view.proof.answers),
        "as_planted_without": planted(view.without.answers),
        "as_planted_control": planted(view.control.answers),
        "summary": view.summary,
    }


def summary(seeds: dict[str, Any]) -> dict[str, Any]:
    """Mean shares over the questions that were answered as planted, by kind, and over the kinds."""
    counted = [each for found in seeds.values() for each in found["questions"] if each["as_planted"]]
    kinds = sorted({each["kind"] for each in counted})
    by_kind: dict[str, dict[str, Any]] = {
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
    parser.add_argument("--proofs", type=int, metavar="SEED", help="prove six questions of this seed")
    parser.add_argument("--work", type=Path, required=True, help="directory of the runs, for going on")
    parser.add_argument("--out", type=Path, default=RESULTS / f"attribution-{datetime.date.today()}.json")
    arguments = parser.parse_args()
    base = find_model(STARTER_NAME)
    if base is None:
        raise SystemExit("The starter model is not prepared: python -m core.worker.model.starter")
    work = arguments.work.absolute()
    work.mkdir(exist_ok=True)
    os.environ["LOCALTUNE_HOME"] = str(work / "home")
    results: dict[str, Any] = {"seeds": {}}
    if arguments.out.exists():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))
    seeds = results["seeds"]
    facts = {"rows": ROWS, "training_steps": STEPS, "numbers_a_sketch": SIZE, "cpu": cpu_name()}
    for seed in arguments.seeds:
        if str(seed) not in seeds:
            seeds[str(seed)] = measure(seed, work, base)
        results = facts | results | {"summary": summary(seeds)}
        write_atomic(arguments.out, json.dumps(results, indent=1) + "\n", mode=0o644)
    if arguments.proofs is not None:
        results["proofs"] = proofs(arguments.proofs, work, base, seeds[str(arguments.proofs)]["questions"])
        write_atomic(arguments.out, json.dumps(results, indent=1) + "\n", mode=0o644)


if __name__ == "__main__":
    main()
