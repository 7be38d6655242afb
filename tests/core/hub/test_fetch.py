"""Downloads with the real client from a fake hub: complete, interrupted, refused, unsafe, without a network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core import paths
from core.data.registries.resolve import resolve_source
from core.errors import UserError
from core.hub.job import FetchJob, FetchPlan, fetch_job
from core.hub.store import NotFetchedError, find_fetched
from core.hub_uri import HubEntry, parse_entry
from core.jobs.job import JobCancelledError, JobProgress
from core.models.check import check_model_directory
from core.models.find import find_model
from tests.cases import cases

from .conftest import rows
from .fake_hub import TOKEN, FakeHub, Reply, Repository
from .fetcher import Fetcher


def agreed(text: str) -> FetchJob:
    """A download that is agreed to whatever its size."""
    return fetch_job(parse_entry(text), lambda _: True)


def fetch(text: str, progress: list[JobProgress] | None = None) -> FetchPlan:
    return agreed(text).run((progress if progress is not None else []).append)


def questions(text: str) -> list[str]:
    return [row.data["prompt"] for source in resolve_source(text) for row in source.rows() if row.data is not None]


def three_splits() -> Repository:
    files = {
        "README.md": b"# words",
        "script.py": b"raise SystemExit",
        "data/train-00000-of-00002.jsonl": rows(1, 2),
        "data/train-00001-of-00002.jsonl": rows(3),
        "data/test-00000-of-00001.jsonl": rows(9),
    }
    return Repository(files, large={"data/train-00001-of-00002.jsonl"})


def below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_dataset_is_fetched_once_and_read_without_the_network(hub: FakeHub) -> None:
    repository = hub.datasets["me/set"] = three_splits()
    entry = "hf://datasets/me/set"
    with pytest.raises(NotFetchedError) as missing:
        resolve_source(entry)
    assert missing.value.message == "hf://datasets/me/set is not on this machine."
    assert missing.value.hint == "'localtune-tui fetch hf://datasets/me/set' downloads it."
    assert hub.asked == []

    seen: list[JobProgress] = []
    plan = fetch(entry, seen)
    assert (plan.commit, plan.files) == (repository.commit, 2)
    assert plan.bytes == plan.remaining == len(rows(1, 2)) + len(rows(3))
    assert plan.reason == "The split train is 2 of 3 data files."
    directory = paths.datasets_dir() / "me--set" / repository.commit
    assert plan.directory == str(directory)
    assert below(directory) == {"localtune.json", *(name for name in repository.files if "train" in name)}
    assert max(progress.done or 0 for progress in seen) == plan.bytes
    # Neither the card nor any code was asked for, nor anything that reports.
    assert sorted(hub.files_asked()) == sorted(name for name in repository.files if "train" in name)
    assert [path for path in hub.paths() if not path.startswith("/datasets/")] == ["/api/datasets/me/set"]
    assert not any("authorization" in asked.headers for asked in hub.asked)
    assert {asked.headers["user-agent"].partition("/")[0] for asked in hub.asked} == {"localtune-tui"}

    asked = len(hub.asked)
    hub.close()
    (source,) = resolve_source(entry)
    assert questions(entry) == ["q1", "q2", "q3"]
    with source.open() as file:
        detection = source.detect(file.rows(0, 9))
    assert detection.format == "prompt_completion"
    assert detection.reason.endswith("The split train is 2 of 3 data files.")
    assert questions(f"hf://datasets/me/set@{repository.commit}/data/train-00001-of-00002.jsonl") == ["q3"]
    with pytest.raises(NotFetchedError, match=r"not whole on this machine: data/test-00000-of-00001.jsonl is missing"):
        resolve_source("hf://datasets/me/set#test")
    assert len(hub.asked) == asked


def test_further_parts_are_added_and_what_is_here_is_not_fetched_again(hub: FakeHub, fetcher: Fetcher) -> None:
    hub.datasets["me/set"] = three_splits()
    fetcher.plan("hf://datasets/me/set")
    before = hub.files_asked()
    again = fetcher.plan("hf://datasets/me/set")
    assert again.remaining == 0
    assert find_fetched(HubEntry("dataset", "me/set")).entry.commit == again.commit
    assert hub.files_asked() == before
    fetcher.plan("hf://datasets/me/set#test")
    assert hub.files_asked() == [*before, "data/test-00000-of-00001.jsonl"]
    assert questions("hf://datasets/me/set") == ["q1", "q2", "q3"]
    assert questions("hf://datasets/me/set#test") == ["q9"]
    assert questions("hf://datasets/me/set/data/test-*") == ["q9"]


def test_a_branch_that_moves_leaves_the_earlier_commit_as_it_was(hub: FakeHub, fetcher: Fetcher) -> None:
    first = hub.datasets["me/set"] = Repository({"train.jsonl": rows(1)})
    fetcher.plan("hf://datasets/me/set")
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(2)}, revisions=("main", "v2"))
    assert questions("hf://datasets/me/set") == ["q1"]
    fetcher.plan("hf://datasets/me/set")
    assert questions("hf://datasets/me/set") == ["q2"]
    assert questions(f"hf://datasets/me/set@{first.commit}") == ["q1"]
    assert questions(f"hf://datasets/me/set@{first.commit[:9]}") == ["q1"]
    with pytest.raises(NotFetchedError):
        resolve_source("hf://datasets/me/set@v2")
    fetcher.plan("hf://datasets/me/set@v2")
    assert questions("hf://datasets/me/set@v2") == ["q2"]


@pytest.mark.parametrize("ignores", [False, True])
def test_a_cut_connection_is_gone_on_with(hub: FakeHub, fetcher: Fetcher, ignores: bool) -> None:
    content = rows(*range(30_000))
    hub.datasets["me/set"] = Repository({"train.jsonl": content})
    hub.cuts, hub.ignores_ranges = [500_000, 250_000], ignores
    plan = fetcher.plan("hf://datasets/me/set")
    assert (Path(plan.directory) / "train.jsonl").read_bytes() == content
    asked = [item.headers.get("range") for item in hub.asked if "/resolve/" in item.path]
    assert asked[0] is None
    starts = [int(str(item).removeprefix("bytes=").rstrip("-")) for item in asked[1:]]
    assert len(starts) == 2
    assert ignores or 0 < starts[0] < starts[1] < len(content)


def test_what_has_come_before_an_end_is_not_asked_for_again(hub: FakeHub, fetcher: Fetcher) -> None:
    content = rows(*range(99))
    hub.datasets["me/set"] = Repository({"train.jsonl": content})
    hub.first = [Reply(content[:50], headers={"Content-Length": str(len(content))}), Reply(status=500)]
    with pytest.raises(UserError, match="500"):
        fetcher.plan("hf://datasets/me/set")
    plan = fetcher.plan("hf://datasets/me/set")
    assert plan.remaining == len(content) - 50
    assert hub.asked[-1].headers["range"] == "bytes=50-"
    assert (Path(plan.directory) / "train.jsonl").read_bytes() == content


def test_it_is_refused_while_the_plan_stands(hub: FakeHub) -> None:
    hub.datasets["me/set"] = three_splits()
    plans: list[FetchPlan] = []

    def refuse(plan: FetchPlan) -> bool:
        plans.append(plan)
        return False

    with pytest.raises(JobCancelledError):
        fetch_job(parse_entry("hf://datasets/me/set"), refuse).run()
    assert plans[0].remaining == plans[0].bytes > 0
    assert hub.files_asked() == []


@cases(("large", "content"), [(True, rows(1)), (False, rows(1)), (False, rows(*range(30_000)))])
def test_what_is_not_what_the_hub_describes_is_thrown_away(
    hub: FakeHub, fetcher: Fetcher, large: bool, content: bytes
) -> None:
    lie = Repository({"train.jsonl": content}, large={"train.jsonl"} if large else set())
    lie.claimed["train.jsonl"] = rows(2)
    hub.datasets["me/set"] = lie
    with pytest.raises(UserError, match="did not come as"):
        fetcher.plan("hf://datasets/me/set")
    with pytest.raises(NotFetchedError):
        resolve_source("hf://datasets/me/set")
    assert sum(path.stat().st_size for path in paths.datasets_dir().rglob("*") if path.is_file()) == 0


def test_a_file_that_was_changed_or_removed_counts_as_missing(hub: FakeHub, fetcher: Fetcher) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(1)})
    file = Path(fetcher.plan("hf://datasets/me/set").directory) / "train.jsonl"
    file.write_bytes(rows(1)[:-3])
    with pytest.raises(NotFetchedError, match="not whole"):
        resolve_source("hf://datasets/me/set")
    fetcher.plan("hf://datasets/me/set")
    assert file.read_bytes() == rows(1)


def test_tokens_are_sent_only_where_they_are_needed_and_only_to_the_hub(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.datasets["me/open"] = Repository({"train.jsonl": rows(1)})
    fetch("hf://datasets/me/open")
    assert not any("authorization" in asked.headers for asked in hub.asked)
    hub.datasets["me/gated"] = Repository({"train.jsonl": rows(2)}, large={"train.jsonl"}, gated=True)
    hub.datasets["me/private"] = Repository({"train.jsonl": rows(3)}, private=True)
    for name in ("gated", "private"):
        fetch(f"hf://datasets/me/{name}")
    sent = [asked for asked in hub.asked if "authorization" in asked.headers]
    assert {asked.server for asked in sent} == {"hub"}
    assert not any("/open" in asked.path for asked in sent)
    kept = b"".join(path.read_bytes() for path in paths.home().rglob("*") if path.is_file())
    assert TOKEN.encode() not in kept
    assert TOKEN not in "".join(capfd.readouterr())


def test_the_token_file_is_read_where_the_variable_is_not_set(hub: FakeHub) -> None:
    hub.datasets["me/private"] = Repository({"train.jsonl": rows(3)}, private=True)
    with pytest.raises(UserError, match=r"There is no dataset me/private on 127.0.0.1:\d+ that you may read") as caught:
        fetch("hf://datasets/me/private")
    assert "HF_TOKEN" in caught.value.hint
    token = Path.home() / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text(f"{TOKEN}\n")
    assert fetch("hf://datasets/me/private").files == 1


@cases(
    ("entry", "says", "hint"),
    [
        ("hf://datasets/me/none", "There is no dataset me/none", "Check the name"),
        ("hf://me/none", "There is no model me/none", "Check the name"),
        ("hf://datasets/me/set@v9", "has no revision v9", "Check it"),
        ("hf://datasets/me/gated", "who have accepted its terms", "HF_TOKEN"),
        ("hf://datasets/me/script", "has no data files", "refs/convert/parquet"),
        ("hf://datasets/me/set#validation", "has no split validation", "train"),
    ],
)
def test_what_cannot_be_fetched_is_a_sentence(hub: FakeHub, fetcher: Fetcher, entry: str, says: str, hint: str) -> None:
    hub.datasets["me/set"] = three_splits()
    hub.datasets["me/gated"] = Repository({"train.jsonl": rows(1)}, gated=True)
    hub.datasets["me/script"] = Repository({"set.py": b"", "README.md": b"", "dataset_infos.json": b"{}"})
    with pytest.raises(UserError, match=says) as caught:
        fetcher.plan(entry)
    assert hint in caught.value.hint


@cases("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_nothing_is_asked_where_the_network_is_forbidden(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub.datasets["me/set"] = three_splits()
    monkeypatch.setenv(name, "1")
    with pytest.raises(UserError, match=f"{name} is set"):
        fetch("hf://datasets/me/set")
    assert hub.asked == []


def test_more_than_the_disk_has_is_refused_before_it_is_fetched(hub: FakeHub, fetcher: Fetcher) -> None:
    told = Repository({"train.jsonl": rows(1)}).described("me/set")
    told["siblings"][0]["size"] = 10**15
    hub.about = Reply(json.dumps(told).encode())
    with pytest.raises(UserError, match="the download needs"):
        fetcher.plan("hf://datasets/me/set")
    assert hub.files_asked() == []


def test_a_disk_that_fills_up_is_a_sentence_and_what_has_come_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("not run: this machine does not allow mount namespaces (unshare -rm)")
    content = rows(*range(100_000))
    hub.datasets["me/set"] = Repository({"train.jsonl": content})
    home = tmp_path / "small"
    home.mkdir()
    program = "import core.hub.download as d, core.jobs.process as p; d.RESERVE = -(1 << 40)\nexit(p.run_job(d.fetch))"
    script = f'mount -t tmpfs -o size=2m small "{home}" && "{sys.executable}" -c "$PROGRAM"; find "{home}" >&2'
    ended = subprocess.run(
        [unshare, "-rm", "sh", "-c", script],
        input=json.dumps({"title": "the download", "hint": "", "entry": "hf://datasets/me/set"}) + "\ntrue\n",
        env={**os.environ, "LOCALTUNE_HOME": str(home), "PROGRAM": program, "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = json.loads(ended.stdout.splitlines()[-1])
    assert "is full" in last["error"], ended.stderr
    assert ".part" in ended.stderr
    assert "localtune.json" not in ended.stderr


def model_files(tiny_model_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tiny_model_dir.iterdir() if path.is_file()}


def test_a_model_is_fetched_whole_and_found_by_its_id(hub: FakeHub, tiny_model_dir: Path) -> None:
    wanted = model_files(tiny_model_dir)
    others = dict.fromkeys(("pytorch_model.bin", "modeling.py", "README.md", "onnx/model.onnx"), b"raise SystemExit")
    repository = hub.models["org/tiny"] = Repository({**wanted, **others}, large={"model.safetensors"})
    assert find_model("org/tiny") is None
    plan = fetch("hf://org/tiny")
    directory = paths.models_dir() / "org--tiny"
    assert Path(plan.directory) == directory == find_model("org/tiny")
    assert below(directory) == {*wanted, "localtune.json"}
    check_model_directory(directory)
    before = len(hub.files_asked())
    assert fetch("hf://org/tiny").remaining == 0
    assert len(hub.files_asked()) == before
    repository.commit = "f" * 40
    with pytest.raises(UserError, match="is here already"):
        fetch("hf://org/tiny")
    assert [path.name for path in paths.models_dir().iterdir() if not path.name.endswith(".lock")] == ["org--tiny"]


def test_revisions_of_a_model_lie_side_by_side_and_each_is_found(
    hub: FakeHub, fetcher: Fetcher, tiny_model_dir: Path
) -> None:
    repository = hub.models["org/tiny"] = Repository(model_files(tiny_model_dir), revisions=("main", "v1"))
    repository.commit = "a" * 40
    first = Path(fetcher.plan("hf://org/tiny@v1").directory)
    assert find_model("hf://org/tiny@v1") == find_model(f"hf://org/tiny@{'a' * 40}") == first
    assert find_model("hf://org/tiny@aaaaaaa") == first
    # No other revision is taken for it.
    assert find_model("org/tiny") is find_model("hf://org/tiny@v2") is find_model("hf://org/tiny@bbbbbbb") is None
    repository.commit = "b" * 40
    default = Path(fetcher.plan("hf://org/tiny").directory)
    assert default.name == "org--tiny"
    assert find_model("org/tiny") == find_model("hf://org/tiny@main") == default
    assert find_model("hf://org/tiny@v1") == first
    # The tag has moved to a commit that is here already.
    asked = len(hub.files_asked())
    assert Path(fetcher.plan("hf://org/tiny@v1").directory) == default == find_model("hf://org/tiny@v1")
    assert len(hub.files_asked()) == asked
    assert find_model(f"hf://org/tiny@{'a' * 40}") == first


def test_a_model_in_the_making_is_none(hub: FakeHub, tiny_model_dir: Path) -> None:
    hub.models["org/tiny"] = Repository(model_files(tiny_model_dir), large={"model.safetensors"})
    job = agreed("hf://org/tiny")

    def stop(progress: JobProgress) -> None:
        if progress.activity == "downloading model.safetensors":
            job.close()

    with pytest.raises(JobCancelledError):
        job.run(stop)
    assert find_model("org/tiny") is None
    before = hub.files_asked()
    fetch("hf://org/tiny")
    assert find_model("org/tiny") is not None
    assert before
    assert not set(before) - {"model.safetensors"} & set(hub.files_asked()[len(before) :]), "what is whole stays"


@cases(
    ("files", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "pickles only"),
        ({"config.json": b"{}", "model.Q4.gguf": b""}, "GGUF files and no safetensors"),
        ({"model.safetensors": b"x"}, "has no config.json"),
        ({"config.json": b'{"auto_map": {"AutoModel": "x.Y"}}', "model.safetensors": b"x" * 9}, "auto_map"),
    ],
)
def test_models_that_would_not_be_loaded_are_not_fetched(
    hub: FakeHub, fetcher: Fetcher, files: dict[str, bytes], says: str
) -> None:
    hub.models["org/odd"] = Repository({**files, "tokenizer.json": b"{}"})
    with pytest.raises(UserError, match=says):
        fetcher.plan("hf://org/odd")
    assert "model.safetensors" not in hub.files_asked()
    assert find_model("org/odd") is None


def test_two_at_once_fetch_it_once(hub: FakeHub) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(*range(1000))})
    plans: list[FetchPlan] = []
    threads = [threading.Thread(target=lambda: plans.append(fetch("hf://datasets/me/set"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 3
    assert hub.files_asked() == ["train.jsonl"]
