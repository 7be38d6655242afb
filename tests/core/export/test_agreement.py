from __future__ import annotations

from dataclasses import replace

from core.export.agreement import Agreement

SAME = Agreement(
    rows=20, prompts_equal=True, mean_kl=0.0, top1=1.0, max_delta=0.0, greedy_equal=20, reader="llama.cpp b1"
)


def test_what_is_equal_passes_every_bar() -> None:
    assert SAME.failures("F32") == []
    assert SAME.failures("F16") == []


def test_each_bar_is_told_with_its_figure() -> None:
    assert SAME.failures("Q4_0") == replace(SAME, mean_kl=0.7, top1=0.6, max_delta=21.0).failures("Q4_0") == []
    assert replace(SAME, max_delta=0.02).failures("F32") == ["Its logits differ by up to 0.02; F32 allows 0.01."]
    assert replace(SAME, mean_kl=0.01, top1=0.9).failures("F16") == [
        "Its mean divergence is 0.01 nats; F16 allows 0.0001.",
        "The likeliest token is the same at 90.0% of positions; F16 wants 99.0%.",
    ]
    assert replace(SAME, max_delta=float("nan")).failures("F32"), "what is no number is no agreement"
    assert "other tokens" in replace(SAME, prompts_equal=False).failures("Q4_0")[0]


def test_what_was_not_measured_fails_no_bar() -> None:
    assert replace(SAME, mean_kl=None, top1=None, max_delta=None).failures("F32") == []
