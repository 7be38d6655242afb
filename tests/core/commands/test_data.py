"""Command ``localtune-tui data``, as users and scripts call it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import sample_data
from tests.core.commands.conftest import Call

TICKETS = str(sample_data.path("tickets_train.jsonl"))


def test_the_json_has_what_scripts_need(call: Call, tiny_model_dir: Path) -> None:
    told = call.ok("data", TICKETS, "--model", str(tiny_model_dir), "--row", "1", "--json").json
    assert told["format"] == "messages"
    assert told["reason"]
    assert told["rows"] == told["used"] == 400
    assert told["dropped"] == {}
    assert set(told["lengths"]) >= {"min", "p50", "p95", "max", "supervised_share"}
    assert all({"code", "count", "rows", "hint"} <= set(problem) for problem in told["problems"])
    tokens = told["tokens"]
    assert all({"id", "text", "supervised"} <= set(token) for token in tokens)
    with Path(TICKETS).open(encoding="utf-8") as file:
        answer = json.loads(file.readline())["messages"][-1]["content"]
    learned = "".join(token["text"] for token in tokens if token["supervised"])
    assert learned == f"{answer}<|im_end|>"


def test_people_get_lines_without_control_characters(call: Call, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.jsonl"
    turns = [{"role": "user", "content": "a\x1b]52;c;x\x07b"}, {"role": "assistant", "content": "c\x9b2Jd"}]
    hostile.write_text(json.dumps({"messages": turns}) + "\n")
    ended = call.ok("data", str(hostile))
    assert "hostile.jsonl" in ended.out
    assert not any(character in ended.out for character in "\x1b\x07\x9b")


#: Shows the reasoning of the last turn only.
LATER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_turns_that_are_learned_in_rows_of_their_own_are_shown_too(
    call: Call, tmp_path: Path, tiny_model_dir: Path
) -> None:
    model, rows, template = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "later.jinja"
    model.mkdir()
    shutil.copy(tiny_model_dir / "tokenizer.json", model)
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "chat_template": "{{ 1 }}"}))
    template.write_text(LATER)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    arguments = (str(rows), "--model", str(model), "--template", str(template), "--row", "1")
    told = call.ok("data", *arguments, "--json").json
    learned = ["".join(t["text"] for t in row if t["supervised"]) for row in (told["tokens"], *told["further"])]
    assert learned == ["d<|im_end|>", "<think>hm</think>b<|im_end|>"]
    assert told["used"] == 1
    shown = call("data", *arguments).out
    assert "[[d<|im_end|>]]" in shown
    assert "part 2" in shown
    assert "[[<think>hm</think>b<|im_end|>]]" in shown


def test_both_answers_of_a_pair_are_shown_and_a_label_in_words(
    call: Call, tmp_path: Path, tiny_model_dir: Path
) -> None:
    pairs, labels = tmp_path / "pairs.jsonl", tmp_path / "labels.jsonl"
    pairs.write_text(json.dumps({"prompt": "q", "chosen": "yes", "rejected": "no, never"}) + "\n")
    labels.write_text(json.dumps({"prompt": "q", "completion": "hm", "label": False}) + "\n")
    shown = call("data", str(pairs), "--model", str(tiny_model_dir)).out
    better, _, worse = shown.partition("row 1, better answer: ")[2].partition("row 1, worse answer: ")
    assert "[[yes<|im_end|>]]" in better
    assert "[[no, never<|im_end|>]]" in worse
    told = call.ok("data", str(pairs), "--model", str(tiny_model_dir), "--row", "1", "--json").json
    learned = ["".join(t["text"] for t in told[name] if t["supervised"]) for name in ("tokens", "rejected")]
    assert learned == ["yes<|im_end|>", "no, never<|im_end|>"]
    assert told["lengths"]["max"] == len(told["rejected"]) > len(told["tokens"])
    assert "row 1, bad answer: " in call("data", str(labels), "--model", str(tiny_model_dir)).out
    # Without a configuration no objective forbids them.
    assert "1 read, 1 used by train.objective = dpo or orpo" in shown
    assert (told["used"], told["dropped"]) == (1, {})


def test_a_template_that_cannot_be_used_is_named_for_every_row(
    call: Call, tmp_path: Path, tiny_model_dir: Path
) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    words = ("--model", str(tiny_model_dir), "--template", str(template), "--row", "1", "--json")
    told = call.ok("data", TICKETS, *words).json
    assert told["dropped"] == {"no_stop_token": 400}
    assert told["row_error"]["code"] == "no_stop_token"
    assert "does not end an answer" in told["row_error"]["message"]


def test_the_histogram_leaves_out_what_is_empty(call: Call, tiny_model_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "lengths.jsonl"
    rows = [{"prompt": f"number {number}", "completion": "ok " * length} for number, length in enumerate([9, 9, 900])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = call.ok("data", str(path), "--model", str(tiny_model_dir))
    lines = [line.strip() for line in ended.out.splitlines()]
    bars = [place for place, line in enumerate(lines) if line.split(" ")[1:2] and set(line.split(" ")[1]) == {"#"}]
    assert len(bars) == 2
    assert lines[bars[0] + 1 : bars[1]] == ["..."]


def test_a_template_without_a_tokenizer_is_reported_to_be_of_no_use(call: Call, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages }}")
    call.refused("--model", "data", TICKETS, "--template", str(template), "--json")


def test_rows_of_an_array_are_named_by_their_numbers_where_lines_do_not_tell_them_apart(
    call: Call, tmp_path: Path
) -> None:
    good, bad = {"text": "some words"}, {"text": " "}
    rows = [good, bad, {"text": "other words"}, bad]
    array, pretty, lines = tmp_path / "one.json", tmp_path / "pretty.json", tmp_path / "blank.jsonl"
    array.write_text(json.dumps(rows))
    pretty.write_text(json.dumps(rows, indent=1))
    lines.write_text("\n\n".join(map(json.dumps, rows)))
    shown = {path.name: call("data", str(path)).out for path in (array, pretty, lines)}
    assert "rows 2, 4\n" in shown["one.json"]
    assert "line" not in shown["one.json"]
    assert "lines 5, 11 (rows 2, 4)\n" in shown["pretty.json"]
    assert "lines 3, 7 (rows 2, 4)\n" in shown["blank.jsonl"]
    told = call.ok("data", str(array), "--json").json
    assert [(problem["rows"], problem["lines"]) for problem in told["problems"]] == [([2, 4], [None, None])]


def test_pictures_and_columns_that_are_not_read_are_reported(call: Call, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "question,answer,image,topic\nWhat is this?,A cat.,cat.png,pets\nWhere is Ulm?,In Germany.,,places\n"
    )
    out = " ".join(call("data", str(rows)).out.split())
    assert "2 read, 1 used 1 dropped: has_media" in out
    assert "drop 1 x has_media: pictures, video or sound" in out
    assert "note 1 x columns_not_read: columns not read topic ->" in out
    (noted,) = [one for one in call.ok("data", str(rows), "--json").json["problems"] if one["level"] == "note"]
    assert (noted["code"], noted["count"], noted["detail"]) == ("columns_not_read", 1, "topic")


def test_a_question_beside_a_text_is_asked_about(call: Call, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Where is Ulm?", "text": "In Germany."}\n')
    ended = call("data", str(rows))
    assert ended.code == 1
    assert 'data.columns = {user = "prompt", assistant = "text"}' in ended.err
    for columns, format_ in (("user=prompt,assistant=text", "prompt_completion"), ("text=text", "text")):
        assert columns in ended.err
        told = call.ok("data", str(rows), "--columns", columns, "--json").json
        assert (told["format"], told["used"]) == (format_, 1)
