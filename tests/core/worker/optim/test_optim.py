import pytest
import torch
from transformers import get_scheduler

from core.worker.optim.optim import lr_factor, warmup_steps
from tests.cases import cases


@cases(("name", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")])
@cases("warmup", [0, 1, 7])
def test_schedules_match_transformers(name: str, theirs: str, warmup: int) -> None:
    total = 40
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    for step in range(total):
        assert lr_factor(name, step, warmup, total) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


def test_warmup_is_a_share_below_one_and_steps_from_one() -> None:
    assert warmup_steps(0.05, 50) == 3
    assert warmup_steps(0, 50) == 0
    assert warmup_steps(1, 50) == 1
    assert warmup_steps(10.0, 50) == 10
