"""The measurement job: its process, its cache in the home, and when it is measured again."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from core import paths
from core.config.schema import Config
from core.errors import UserError
from core.quantization import job
from core.quantization.job import free_bytes, known, known_sentence, measure, recall, remember
from core.quantization.result import Figures, Kept, LayerCost, QuantizationCost, kept_sentence, sentence
from core.runs.outlook import forecast
from tests.core.quantization.test_result import COST
from tests.core.worker.quantization.hurt import write_hurt
from tests.e2e.workers import write_rows
from tests.progress import quiet


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A run on a model that 4 bits hurt."""
    return Config.model_validate(
        {
            "model": {"base": str(write_hurt(tmp_path / "hurt"))},
            "data": {
                "train": str(write_rows(tmp_path / "train.jsonl", 20)),
                "eval": str(write_rows(tmp_path / "eval.jsonl", 5, seed=2)),
            },
            "train": {"precision": "fp32", "max_length": 512},
            "hardware": {"device": "cpu"},
        }
    )


def changed(config: Config, section: str, **values: object) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def test_it_is_measured_once_and_again_when_rows_or_settings_change(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known(config) is None
    told: list[str] = []
    cost = measure(config, lambda activity, *_: told.append(activity), rows=3)
    assert (cost.rows, cost.data, cost.device, cost.precision) == (3, "eval", "cpu", "fp32")
    assert cost.kept is not None
    assert cost.free_bytes is not None
    assert {"importing the libraries", "layer by layer"} <= set(told)
    assert known(config, rows=3) == cost
    assert known(changed(config, "model", keep_16bit="auto"), rows=3) == cost, "measured before any is kept"
    assert known(config) is None, "on other rows"
    for other in (
        changed(config, "model", keep_16bit=["layers.0.*"]),
        changed(config, "train", max_length=256),
        changed(config, "data", eval=None),
    ):
        assert known(other, rows=3) is None
    assert known(changed(config, "train", learning_rate=1e-5), rows=3) == cost, "what has no part in it may change"
    monkeypatch.setattr(job, "PROGRAM", "no.such.module")
    assert measure(config, quiet, rows=3) == cost
    # Less memory than its layers take: the choice has to be made anew.
    monkeypatch.setattr(job, "free_bytes", lambda _: cost.kept.bytes - 1 if cost.kept else 0)
    with pytest.raises(UserError, match="The measurement of 4 bits"):
        measure(config, quiet, rows=3)
    file = Path(str(config.data.eval))
    os.utime(file, ns=(1, 1))
    assert known(config, rows=3) is None


#: The result with 250 bytes free: two of three layers, which are not enough.
SHORT = replace(
    COST,
    whole=Figures(2.0, 0.4, 0.5),
    layers=tuple(LayerCost(f"model.layers.{place}", cost, 100) for place, cost in enumerate((0.2, 0.1, 0.15))),
    kept=Kept((0, 2), ("model.layers.0.*", "model.layers.2.*"), 200, Figures(1.5, 0.3, 0.6)),
    free_bytes=250,
)


def test_what_was_chosen_when_memory_was_short_is_chosen_anew_when_there_is_more(config: Config) -> None:
    remember(config, SHORT)
    assert known(config) == SHORT
    for free in (250, 299, 240, 200):
        assert recall(config, free) == SHORT, "no other layer would fit"
    for more in (300, 10_000, None):
        assert recall(config, more) is None
    assert recall(config, 199) is None, "they do not fit"

    assert SHORT.kept is not None
    enough = replace(SHORT, kept=replace(SHORT.kept, figures=Figures(1.2, 0.2, 0.8)))
    remember(config, enough)
    assert recall(config, 10_000) == enough, "more would not be kept with more memory"
    fine = replace(SHORT, whole=Figures(1.0, 0.01, 1.0), kept=None)
    remember(config, fine)
    assert recall(config, 10_000) == fine
    nothing = replace(SHORT, kept=None, free_bytes=50)
    remember(config, nothing)
    assert recall(config, 99) == nothing
    assert recall(config, 100) is None


def test_what_may_be_kept_is_all_that_the_run_could_do_without(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def free_of(limit: int) -> int:
        monkeypatch.setattr(job, "machine_for", lambda _: replace(forecast.machine_for(config), limit_bytes=limit))
        found = free_bytes(config)
        assert found is not None
        return found

    # All that more memory is spent on is speed: each byte of it is there for quality first.
    assert free_of(3_000_000_000) - free_of(2_000_000_000) == pytest.approx(0.9e9, abs=2)
    assert free_of(1000) == 0


def test_the_sentence_is_known_while_the_configuration_is_the_same(config: Config) -> None:
    assert known_sentence(config) == ""
    cost = measure(config, quiet)
    assert cost.kept is not None
    assert known_sentence(config) == sentence(cost)
    assert known_sentence(changed(config, "method", name="lora")) == ""
    assert known_sentence(changed(config, "model", keep_16bit=list(cost.kept.patterns))) == kept_sentence(cost)
    assert known_sentence(changed(config, "model", keep_16bit=["layers.3.*"])) == ""


def test_without_held_out_rows_it_says_that_training_rows_were_taken(config: Config) -> None:
    cost = measure(changed(config, "data", eval=None), quiet, rows=2)
    assert cost.data == "training"
    shared = changed(changed(config, "data", eval=None), "data", eval_share=0.2)
    assert measure(shared, quiet, rows=2).data == "held_out"


def test_what_cannot_be_measured_is_shown_in_a_sentence(config: Config, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"messages": []}\n')
    with pytest.raises(UserError, match=r"empty\.jsonl"):
        measure(changed(config, "data", eval=str(empty)), quiet)
    with pytest.raises(UserError, match="no-such-model"):
        measure(changed(config, "model", base="no-such-model"), quiet)


def test_a_damaged_result_is_as_none_and_old_ones_go(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "KEPT", 2)
    cost = measure(config, quiet, rows=2)
    directory = paths.home() / "cache" / "quantization"
    (file,) = directory.iterdir()
    content = json.loads(file.read_text())
    assert QuantizationCost.from_dict(content) == cost
    assert content["sentence"] == sentence(cost)
    for number in range(4):
        job._keep(f"other-{number}", {})
    assert len(list(directory.iterdir())) == 2
    job._keep(file.stem, {"rows": 2})
    assert known(config, rows=2) is None
