"""Tokenized datasets from data files, with every row accounted for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.analysis.preflight import Preflight
from core.analysis.problems import FileLine
from core.chat.corrections import Correction, keep_correction
from core.config.schema import Config
from core.data.conversation import Example
from core.errors import UserError
from core.worker.data.batches import fingerprint
from core.worker.data.dataset import CHUNK_ROWS, Dataset, Loader
from core.worker.data.encode import Encoder, TokenizedRow
from core.worker.process.control import StopRequested

Writes = Callable[..., str]


@pytest.fixture(scope="module")
def encoder(tiny_model_dir: Path) -> Encoder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return Encoder(tokenizer, [tokenizer.eos_token_id])


@pytest.fixture
def write(tmp_path: Path) -> Writes:
    def write(*rows: Any, name: str = "a.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
        return str(tmp_path / name)

    return write


def loader(encoder: Encoder, *, data: dict[str, Any] | None = None, **sections: Any) -> Loader:
    return Loader(Config.model_validate({"data": {"train": "unused"} | (data or {}), **sections}), encoder)


def chat(question: str, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def tokens(*ids: int, labels: list[int] | None = None) -> dict[str, Any]:
    return {"input_ids": list(ids)} | ({"labels": labels} if labels else {})


def learned(encoder: Encoder, dataset: Dataset, row: int) -> str:
    return str(encoder.tokenizer.decode(dataset.rows[row].input_ids[dataset.rows[row].supervised]))


def questions(dataset: Dataset) -> list[str]:
    return [example.messages[0].content for example in dataset.examples]


def test_a_text_beside_a_label_is_asked_about_before_a_run_and_never_after(encoder: Encoder, write: Writes) -> None:
    path = write({"text": "My card was eaten.", "category": "lost"}, {"text": "Where is my card?", "category": "late"})
    assert [example.text for example in loader(encoder).load(path).examples] == [
        "My card was eaten.",
        "Where is my card?",
    ]
    with pytest.raises(UserError, match="category"):
        dataclasses.replace(loader(encoder), asks=True).load(path)


def test_rows_with_pictures_are_dropped_and_unread_columns_kept(encoder: Encoder, write: Writes) -> None:
    shown = {**chat("<image>what is this"), "images": ["a.png"]}
    path = write(shown, {**chat("how"), "images": [], "id": 1}, {**chat("why"), "tag": "x"})
    dataset = loader(encoder).load(path)
    assert questions(dataset) == ["how", "why"]
    assert dataset.dropped == {"has_media": 1}
    assert dataset.unread == {path: {"id": 1, "tag": 1}}
    with pytest.raises(UserError, match=r"\(2 x has_media\).*line 1: The column images holds pictures") as caught:
        loader(encoder).load(write(shown, {**chat("this"), "audio": "a.wav"}))
    assert "Only text is read" in caught.value.hint


def test_files_of_different_formats_are_read_one_after_another(encoder: Encoder, write: Writes) -> None:
    paths = [
        write(chat("how", "so")),
        write({"prompt": "two", "completion": "deux"}, name="b.jsonl"),
        write({"text": "plain words"}, name="c.jsonl"),
        write(tokens(5, 6), name="d.jsonl"),
    ]
    dataset = loader(encoder).load(paths)
    assert [example.answer for example in dataset.examples] == ["so", "deux", "", ""]
    rendered = "<|im_start|>user\nhow<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n"
    assert encoder.tokenizer.decode(dataset.rows[0].input_ids) == rendered
    assert learned(encoder, dataset, 0) == "so<|im_end|>"
    assert encoder.tokenizer.decode(dataset.rows[2].input_ids) == "plain words<|im_end|>"
    assert dataset.rows[3].input_ids.tolist() == [5, 6]
    formats = [text.split(":")[0] for text in dataset.formats.values()]
    assert formats == ["messages", "prompt_completion", "text", "tokens"]
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (4, 4, {})
    assert (event.tokens, event.longest) == (sum(dataset.lengths), max(dataset.lengths))
    assert event.supervised_tokens == sum(int(row.supervised.sum()) for row in dataset.rows)


def test_of_every_row_it_is_known_where_it_comes_from(encoder: Encoder, write: Writes) -> None:
    first = write(*[chat(f"question {number}") for number in range(6)], "no json", chat("last"))
    second = write(chat("of b"), chat("more of b"), name="b.jsonl")
    data = {"train": [first, second], "weights": [1, 2], "eval_share": 0.3}
    dataset, held_out = loader(encoder, data=data).training()
    assert held_out is not None
    lines = {Path(path).name: Path(path).read_text().splitlines() for path in (first, second)}
    for rows in (dataset, held_out):
        assert len(rows.places) == len(rows.rows) == len(rows.examples)
        for position, question in enumerate(questions(rows)):
            path, _, line = rows.place(position).rpartition(" line ")
            assert json.loads(lines[path][int(line) - 1])["messages"][0]["content"] == question
    assert dataset.repeated


def test_unusable_rows_are_counted_and_the_first_of_each_kind_is_named(encoder: Encoder, write: Writes) -> None:
    rows = [chat("fine"), "{not json", chat("long " * 100), {"messages": []}, "[1]", chat("x", " "), chat("last")]
    dataset = loader(encoder, train={"max_length": 100}).load(write(*rows))
    event = dataset.event()
    assert (event.rows, event.used) == (7, 2)
    reasons = ("not_json", "overlong", "no_messages", "not_an_object", "empty_answer")
    assert event.dropped == dict.fromkeys(reasons, 1)
    assert dataset.first_dropped["not_json"].startswith("a.jsonl, line 2: ")
    assert dataset.first_dropped["overlong"].startswith("a.jsonl, line 3: ")


def test_an_example_of_several_rows_counts_once(encoder: Encoder, write: Writes) -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content if loop.last or message.role == 'user' else message.content.split('</think>')[-1] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thinking = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], template)
    two = {"messages": chat("a", "<think>x</think>b")["messages"] + chat("c", "<think>y</think>d")["messages"]}
    path = write(two, chat("plain"), "{broken", two)
    dataset = loader(thinking).load(path)
    event = dataset.event()
    assert (event.rows, event.used, event.dropped, len(dataset.rows)) == (4, 3, {"not_json": 1}, 5)
    assert len(dataset.examples) == len(dataset.rows)
    answers = ["<think>y</think>d<|im_end|>", "<think>x</think>b<|im_end|>"]
    assert [learned(thinking, dataset, row) for row in (0, 1)] == answers
    # All rows of an example are held out together, and too long a one takes the others with it.
    divided, held_out = loader(thinking, data={"train": path, "eval_share": 0.5}).training()
    assert held_out is not None
    assert {id(example) for example in divided.examples}.isdisjoint(id(example) for example in held_out.examples)
    assert divided.event().rows == divided.event().used + sum(divided.event().dropped.values())
    short = loader(thinking, train={"max_length": dataset.lengths[1] + 1}).load(path)
    assert (len(short.rows), short.dropped) == (1, {"not_json": 1, "overlong": 2})


def test_long_rows_are_cut_or_refused_if_configured(encoder: Encoder, write: Writes) -> None:
    path = write(chat("short"), "", chat("x", "y" * 200), chat("z" * 200, "never reached"))
    dataset = loader(encoder, train={"max_length": 60}, data={"overlong": "truncate"}).load(path)
    assert dataset.lengths[1] == 60
    assert learned(encoder, dataset, 1).startswith("yyy")
    assert dataset.dropped == {"nothing_supervised": 1}
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: The row has \d+ tokens") as caught:
        loader(encoder, train={"max_length": 60}, data={"overlong": "refuse"}).load(path)
    assert "train.max_length" in caught.value.hint


@pytest.mark.parametrize(("code", "template"), [("overlong", None), ("template_error", "{% for message in %}")])
def test_data_without_usable_rows_is_an_error_with_reasons(
    encoder: Encoder, write: Writes, code: str, template: str | None
) -> None:
    ours = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], template)
    path = write(chat("z" * 200), chat("z" * 300))
    reason = rf"No row of .*a\.jsonl can be used \(2 x {code}\)\. a\.jsonl, line 1: "
    with pytest.raises(UserError, match=reason) as error:
        loader(ours, train={"max_length": 60}).load(path)
    assert error.value.hint.endswith("template.file.") is bool(template)


def test_loading_reports_progress_which_can_stop_it_and_a_limit_ends_it(encoder: Encoder, write: Writes) -> None:
    path = write(*(chat(f"question {number}") for number in range(2 * CHUNK_ROWS + 1)))
    told: list[int] = []
    telling = dataclasses.replace(loader(encoder), progress=told.append)
    dataset = telling.load(path)
    assert told == [CHUNK_ROWS, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 1]
    assert all(row.input_ids.dtype == np.int32 for row in dataset.rows)
    few = telling.load([path, "never-opened.jsonl"], limit=5)
    assert few.examples == dataset.examples[:5]
    assert (few.event().rows, told[3:]) == (5, [5])


def test_a_stop_is_heard_during_the_search_for_leaked_held_out_rows(encoder: Encoder, write: Writes) -> None:
    train = write(*(chat(f"question {number}") for number in range(CHUNK_ROWS)))
    told: list[int] = []

    def progress(rows: int) -> None:
        told.append(rows)
        if told.count(CHUNK_ROWS) == 2:
            raise StopRequested("SIGTERM")

    searching = loader(encoder, data={"train": train, "eval": write(chat("another"), name="b.jsonl")})
    preflight = Preflight(frozenset(), lambda *_: None)
    with pytest.raises(StopRequested):
        dataclasses.replace(searching, progress=progress, preflight=preflight).training()
    assert told == [CHUNK_ROWS, 1, CHUNK_ROWS]


def test_rows_that_are_tokens_already(encoder: Encoder, write: Writes) -> None:
    labeled = [tokens(5, 6, 7, labels=[-100, 6, 7]), tokens(5, 6, labels=[-100, -100])]
    path = write(*labeled, tokens(5, 6), tokens(5, 9999))
    dataset = dataclasses.replace(loader(encoder), vocabulary=320).load(path)
    assert [row.input_ids.tolist() for row in dataset.rows] == [[5, 6, 7], [5, 6]]
    assert [row.supervised.tolist() for row in dataset.rows] == [[False, True, True], [False, True]]
    assert dataset.dropped == {"bad_tokens": 1, "nothing_supervised": 1}
    assert "the model knows those below 320" in dataset.first_dropped["bad_tokens"]


def test_a_pair_is_two_sequences_of_one_row(encoder: Encoder, write: Writes) -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "not so good"}
    path = write(pair, {"prompt": "q", "chosen": "a", "rejected": "b" * 100})
    dataset = loader(encoder, train={"objective": "dpo", "max_length": 64}).load(path)
    assert dataset.dropped == {"overlong": 1}, "the longer answer counts"
    (row,) = dataset.rows
    assert row.rejected is not None
    answers = [encoder.tokenizer.decode(part.input_ids[part.supervised]) for part in row.sequences]
    assert answers == ["good<|im_end|>", "not so good<|im_end|>"]
    prompt = int(row.supervised.argmax())
    assert row.input_ids[:prompt].tolist() == row.rejected.input_ids[:prompt].tolist()
    event = dataset.event()
    assert (event.used, event.tokens, event.longest) == (1, len(row) + len(row.rejected), len(row.rejected))
    assert event.supervised_tokens == int(row.supervised.sum() + row.rejected.supervised.sum())
    cutting = loader(encoder, train={"objective": "orpo", "max_length": 64}, data={"overlong": "truncate"})
    cut = cutting.load(path).rows[1]
    assert [len(part) for part in cut.sequences] == [len(cut), 64]
    assert fingerprint([row]) != fingerprint([dataclasses.replace(row, rejected=None)])


def test_a_label_stays_with_its_row(encoder: Encoder, write: Writes) -> None:
    path = write(*({"prompt": "q", "completion": "a", "label": label} for label in (True, False)))
    dataset = loader(encoder, train={"objective": "kto"}).load(path)
    assert [row.label for row in dataset.rows] == [True, False]
    assert fingerprint(dataset.rows) != fingerprint(dataset.rows[::-1])
    with pytest.raises(UserError, match=r"train\.objective is dpo, which learns from preference pairs"):
        loader(encoder, train={"objective": "dpo"}).load(path)


def test_the_columns_of_the_configuration_and_of_an_entry(encoder: Encoder, write: Writes, tmp_path: Path) -> None:
    plain = write({"q": "x", "a": "plain"})
    write({"frage": "x", "antwort": "entry"}, name="b.jsonl")
    entry = {"file_name": "b.jsonl", "columns": {"prompt": "frage", "response": "antwort"}}
    info = write({"mine": entry}, name="dataset_info.json")
    data = {"train": [plain, f"{info}#mine"], "columns": {"user": "q", "assistant": "a"}}
    dataset, _ = loader(encoder, data=data).training()
    assert [example.answer for example in dataset.examples] == ["plain", "entry"]
    assert all("columns are named" in reason for reason in dataset.formats.values())


def test_a_share_is_held_out_and_copies_do_not_cross(encoder: Encoder, write: Writes) -> None:
    path = write(*(chat(f"q{number % 20}") for number in range(40)), "broken")
    dividing = loader(encoder, data={"train": path, "eval_share": 0.2}, eval={"max_rows": 6})
    dataset, held_out = dividing.training()
    assert held_out is not None
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (41, 32, {"held_out": 8, "not_json": 1})
    assert len(held_out.rows) == len(held_out.examples) == 6
    assert not set(held_out.examples) & set(dataset.examples)
    assert dividing.training()[0].examples == dataset.examples
    same = write(chat("same"), chat("same"))
    with pytest.raises(UserError, match="all rows are the same"):
        loader(encoder, data={"train": same, "eval_share": 0.1}).training()


def test_weights_repeat_and_leave_out(encoder: Encoder, write: Writes) -> None:
    first = write(*(chat(f"a{number}") for number in range(4)))
    second = write(*(chat(f"b{number}") for number in range(10)), name="b.jsonl")
    weighing = loader(encoder, data={"train": [first, second], "weights": [2.5, 0.3]})
    dataset, held_out = weighing.training()
    asked = questions(dataset)
    assert held_out is None
    assert sorted(asked.count(f"a{number}") for number in range(4)) == [2, 2, 3, 3]
    assert sum(name.startswith("b") for name in asked) == len({name for name in asked if name.startswith("b")}) == 3
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (14, 7, {"not_sampled": 7})
    assert event.tokens == sum(dataset.lengths)
    assert len(dataset.rows) == len(dataset.examples) == 13
    assert weighing.training()[0].examples == dataset.examples


def test_repetitions_and_further_rows_belong_to_one_example() -> None:
    def row(*ids: int) -> TokenizedRow:
        return TokenizedRow(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 0)

    two, one = row(1, 2).with_further([row(1, 2, 3)]), row(4, 5)
    asked, other = Example(text="asked"), Example(text="other")
    places = [FileLine("a.jsonl", line) for line in (1, 2, 1)]
    dataset = Dataset([two, one, two], [asked, other, asked], places)
    dataset.unfold()
    assert [len(each) for each in dataset.rows] == [2, 3, 2, 2, 3]
    found = dataset.trained_examples()
    assert [(each.place.line, each.example, [len(row) for row in each.rows]) for each in found] == [
        (1, asked, [2, 3]),
        (2, other, [2]),
    ]
    dataset.excluded = frozenset({2})
    assert [each.example for each in dataset.trained_examples()] == [asked]


def test_rows_left_out_stay_as_gaps_and_count_as_dropped(encoder: Encoder, write: Writes) -> None:
    first = write(*(chat(f"a{number}") for number in range(6)), "broken")
    second = write(*(chat(f"b{number}") for number in range(4)), name="b.jsonl")
    data = {"train": [first, second], "weights": [1.5, 2]}
    whole, _ = loader(encoder, data=data).training()
    excluding = loader(encoder, data={**data, "exclude": ["a.jsonl:2-3", "a.jsonl:7", "b.jsonl:1"]})
    dataset, _ = excluding.training()
    assert (dataset.examples, dataset.places) == (whole.examples, whole.places), "the order is over all rows"
    assert {questions(dataset)[at] for at in dataset.excluded} == {"a1", "a2", "b0"}
    assert len(dataset.excluded) == sum(asked in ("a1", "a2", "b0") for asked in questions(dataset)) > 4
    event, before = dataset.event(), whole.event()
    assert (event.rows, event.used, event.dropped) == (11, 7, {"excluded": 3, "not_json": 1})
    assert event.ordered == before.used
    assert event.tokens == sum(row.tokens for at, row in enumerate(dataset.rows) if at not in dataset.excluded)
    assert 0 < before.supervised_tokens - event.supervised_tokens < before.supervised_tokens
    everything = loader(encoder, data={"train": first, "exclude": "a.jsonl:1-9"})
    with pytest.raises(UserError, match=r"data\.exclude leaves out all"):
        everything.training()
    with pytest.raises(UserError, match=r"data\.exclude names b\.jsonl:5, and data\.train has no such row"):
        loader(encoder, data={**data, "exclude": ["b.jsonl:5"]}).training()


def test_a_row_left_out_takes_all_rows_of_its_example_along(encoder: Encoder, write: Writes) -> None:
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content if loop.last or message.role == 'user' else message.content.split('</think>')[-1] }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thinking = Encoder(encoder.tokenizer, [encoder.tokenizer.eos_token_id], template)
    two = {"messages": chat("a", "<think>x</think>b")["messages"] + chat("c", "<think>y</think>d")["messages"]}
    dataset, _ = loader(thinking, data={"train": write(chat("plain"), two), "exclude": "a.jsonl:2"}).training()
    assert (len(dataset.rows), set(dataset.excluded)) == (3, {1, 2})
    assert (dataset.event().used, dataset.event().dropped) == (1, {"excluded": 1})


def test_rows_held_out_stay_so_and_leaked_rows_may_be_left_out(encoder: Encoder, write: Writes) -> None:
    path = write(*(chat(f"question {number}") for number in range(20)))
    data: dict[str, Any] = {"train": path, "eval_share": 0.2}
    _, held_out = loader(encoder, data=data).training()
    assert held_out is not None
    told: list[tuple[str, str]] = []
    preflight = Preflight(frozenset(), lambda code, message, _: told.append((code, message)))
    entry = f"a.jsonl:{held_out.places[0].line}"
    dataset, again = dataclasses.replace(
        loader(encoder, data={**data, "exclude": entry}), preflight=preflight
    ).training()
    assert again is not None
    assert (again.examples, again.excluded, dataset.excluded) == (held_out.examples, frozenset(), frozenset())
    ((code, message),) = told
    assert code == "excluded_held_out"
    assert message.endswith(f"a.jsonl line {held_out.places[0].line}.")

    leaking = {"train": path, "eval": write(chat("question 3"), name="b.jsonl")}
    with pytest.raises(UserError, match="1 of 1 held-out rows"):
        dataclasses.replace(loader(encoder, data=leaking), preflight=preflight).training()
    dataclasses.replace(loader(encoder, data={**leaking, "exclude": "a.jsonl:4"}), preflight=preflight).training()


@pytest.fixture
def corrected(tmp_path: Path) -> str:
    """A file with two corrections, the second one with a turn before the question."""
    path = tmp_path / "corrections.jsonl"
    turns = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "said"}]
    keep_correction(path, Correction(({"role": "user", "content": "question 3"},), "right", "wrong"))
    keep_correction(path, Correction((*turns, {"role": "user", "content": "second"}), "better", "worse"))
    return str(path)


def test_corrections_are_learned_eight_times_among_some_of_the_rows(
    encoder: Encoder, write: Writes, corrected: str
) -> None:
    train = write(*(chat(f"question {number}") for number in range(100)))
    given = loader(encoder, data={"train": train, "format": "messages", "corrections": corrected})
    dataset, held_out = given.training()
    assert held_out is None
    assert len(dataset.rows) == (3 + 1) * 8 * 2
    assert [example.answer for example in dataset.examples[48:]] == ["right", "better"] * 8
    assert len(set(questions(dataset)[:48])) == 48, "other rows are not repeated"
    assert learned(encoder, dataset, 49).strip().startswith("better"), "the earlier answer is not learned"
    assert "said" not in learned(encoder, dataset, 49)
    assert dataset.places[49].line == 2
    event = dataset.event()
    assert (event.rows, event.used, event.dropped) == (102, 50, {"not_sampled": 52})
    assert fingerprint(dataset.rows) == fingerprint(given.training()[0].rows)


def test_few_rows_are_all_kept_beside_corrections_and_their_questions_are_not_measured(
    encoder: Encoder, write: Writes, corrected: str
) -> None:
    held_out = write(*(chat(f"question {number}") for number in range(5)), name="eval.jsonl")
    train = write(chat("a"), chat("b"))
    dataset, measured = loader(encoder, data={"train": train, "eval": held_out, "corrections": corrected}).training()
    assert questions(dataset)[:3] == ["a", "b", "question 3"]
    assert measured is not None
    assert questions(measured) == [f"question {number}" for number in (0, 1, 2, 4)]


def test_corrections_of_a_preference_run_are_pairs(encoder: Encoder, write: Writes, corrected: str) -> None:
    train = write({"prompt": "a", "chosen": "b", "rejected": "c"})
    given = loader(encoder, data={"train": train, "corrections": corrected}, train={"objective": "dpo"})
    dataset, _ = given.training()
    assert [example.rejected[-1].content for example in dataset.examples[1:3]] == ["wrong", "worse"]
    assert all(row.rejected is not None for row in dataset.rows)


def test_a_correction_that_is_too_long_is_named(encoder: Encoder, write: Writes, corrected: str) -> None:
    given = loader(encoder, data={"train": write(chat("a")), "corrections": corrected}, train={"max_length": 8})
    with pytest.raises(UserError):
        given.training()
    Path(corrected).write_text("")
    with pytest.raises(UserError, match="has no correction to train on"):
        loader(encoder, data={"train": write(chat("a")), "corrections": corrected}).training()
