"""Paged states, with buffers of the host in the place of managed memory."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import bitsandbytes.functional
import pytest
import torch
from accelerate import Accelerator

from core.errors import UserError
from core.worker.oom.retry import Retry
from core.worker.optim.optim import make_optimizer
from core.worker.optim.paged import HOST_RESERVE, PagedBuffers, allocate_managed, check_room, is_paged, load_states
from core.worker.optim.update import AdapterUpdate, RetryableStep, WeightUpdate
from tests.cases import cases
from tests.core.worker.optim.test_retryable_step import (
    Dispatched,
    assert_equal,
    give_gradients,
    options,
    states,
    weight_update,
)

GB = 1 << 30
TRAIN, UNPAGED = options("paged_adamw_8bit"), options("adamw_8bit")
#: Large enough to be paged, and not.
SHAPES = ((320, 320), (64, 128))


class Pages:
    """Stands for the driver: marks tensors of the host as paged, and counts them."""

    def __init__(self) -> None:
        self.made: list[torch.Tensor] = []
        self.buffers = PagedBuffers(self.allocate, lambda buffer: buffer.zero_())

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        made: Any = torch.full(shape, 7, dtype=dtype)
        made.is_paged, made.page_deviceid = True, 0
        self.made.append(made)
        return self.made[-1]


@pytest.fixture(autouse=True)
def no_prefetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bitsandbytes.functional, "prefetch_tensor", lambda *_: None)


def parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def test_the_host_never_copies_a_paged_state_in_a_step() -> None:
    pages, trained = Pages(), parameters()
    step = RetryableStep(make_optimizer(trained, TRAIN, buffers=pages.buffers), Retry())
    for number in range(3):
        give_gradients(trained, number)
        with Dispatched(lambda _, args: any(map(is_paged, args))) as touched:
            step()
    assert len(pages.made) == 2
    assert not touched.counts["aten.clone.default"]
    assert touched.counts["bitsandbytes.optimizer_update_8bit_blockwise.default"] == 1


def adapter_update(trained: list[torch.nn.Parameter], pages: Pages | None) -> AdapterUpdate:
    buffers = None if pages is None else pages.buffers
    optimizer = make_optimizer(trained, UNPAGED if pages is None else TRAIN, buffers=buffers)
    return AdapterUpdate(Accelerator(cpu=True), optimizer, trained, 0.0, Retry())


def tensor_updates(trained: list[torch.nn.Parameter], pages: Pages | None) -> WeightUpdate:
    named, train = dict(zip("ab", trained, strict=True)), UNPAGED if pages is None else TRAIN
    return weight_update(named, train.optimizer, buffers=None if pages is None else pages.buffers)


@cases("make", [adapter_update, tensor_updates])
@cases("before", [True, False])
def test_paged_states_are_paged_after_a_resume_and_go_on_bit_for_bit(make: Any, before: bool) -> None:
    """With states there already, as after going back within a process, their buffers are written over."""

    def run(update: Any, of: list[torch.nn.Parameter], steps: range) -> None:
        for number in steps:
            update.begin(1e-2)
            give_gradients(of, number)
            update.clip()
            update.step()

    plain, cut, resumed = parameters(), parameters(), parameters()
    whole = make(plain, None)
    run(whole, plain, range(4))
    saving = make(cut, Pages())
    run(saving, cut, range(2))
    pages = Pages()
    update = make(resumed, pages)
    if before:
        run(update, resumed, range(5, 6))
    with torch.no_grad():
        for parameter, value in zip(resumed, cut, strict=True):
            parameter.copy_(value)
    update.load_state_dict(copy.deepcopy(saving.state_dict()))
    assert len(pages.made) == 2, "two moments of the large tensor"
    run(update, resumed, range(2, 4))
    assert len(pages.made) == 2
    assert all(map(torch.equal, resumed, plain))


def test_states_of_a_paged_optimizer_are_the_same_and_not_paged_in_another() -> None:
    trained, pages = parameters(), Pages()
    paged, plain = make_optimizer(trained, TRAIN, buffers=pages.buffers), make_optimizer(trained, UNPAGED)
    give_gradients(trained, 0)
    paged.step()
    load_states(plain, copy.deepcopy(paged.state_dict()))
    assert any(map(is_paged, states(paged)))
    assert not any(map(is_paged, states(plain)))
    assert_equal(states(plain), states(paged))


def test_a_rehearsal_leaves_its_buffers_to_the_training() -> None:
    pages, trained = Pages(), parameters()
    update = tensor_updates(trained, pages)
    with update.rehearsal():
        give_gradients(trained, 0)
        for stepper in update._steppers.values():
            stepper.rehearse()
    assert len(pages.made) == 2
    assert not any(state["state"] for state in update.state_dict().values())
    update.begin(1e-2)
    give_gradients(trained, 1)
    update.clip()
    update.step()
    assert len(pages.made) == 2


def test_a_buffer_that_is_used_again_is_zero_and_small_and_cpu_tensors_are_not_paged() -> None:
    pages = Pages()
    parameter = torch.zeros(SHAPES[0])
    first = pages.buffers(parameter, dtype=torch.uint8).fill_(3)
    pages.buffers.give_back({"step": 1, "state1": first, "absmax1": torch.ones(3)})
    assert pages.buffers(parameter, dtype=torch.uint8) is first
    assert not first.any()
    assert pages.buffers(parameter, dtype=torch.uint8) is not first
    assert not is_paged(pages.buffers(torch.zeros(SHAPES[1])))
    assert not is_paged(PagedBuffers()(parameter))


def test_room_is_foreseen() -> None:
    check_room(3 * GB, host=2 * GB + HOST_RESERVE, card=GB)
    with pytest.raises(UserError, match=r"3\.2 GB more are needed, and 3\.2 GB of the machine's memory"):
        check_room(3 * GB, host=2 * GB + HOST_RESERVE, card=GB - 1)
    with pytest.raises(UserError, match="do not fit"):
        check_room(1, host=0, card=0)


class Driver:
    """CUDA's driver, whose managed memory is that of the process."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.kept: list[Any] = []

    def cuMemAllocManaged(self, address: Any, size: Any, flags: Any) -> int:  # noqa: N802 - the driver's name
        assert flags.value == 1
        self.kept.append(ctypes.create_string_buffer(size.value))
        address._obj.value = ctypes.addressof(self.kept[-1])
        return self.code


def test_managed_memory_is_a_tensor_as_bitsandbytes_makes_it() -> None:
    driver, device = Driver(0), torch.device("cuda", 1)
    buffer: Any = allocate_managed((3, 5), torch.float32, device, driver)
    assert (buffer.shape, buffer.dtype, buffer.is_paged, buffer.page_deviceid) == ((3, 5), torch.float32, True, 1)
    buffer.fill_(1.0)
    assert driver.kept[0].raw == buffer.numpy().tobytes()


def test_a_refusing_driver_is_an_error_and_without_one_bitsandbytes_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="managed memory"):
        allocate_managed((3, 5), torch.float32, torch.device("cuda", 0), Driver(2))
    made = torch.zeros(3)
    monkeypatch.setattr(bitsandbytes.functional, "get_paged", lambda *_, **__: made)
    assert allocate_managed((3,), torch.float32, torch.device("cuda", 0), Driver(201)) is made
