import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from core.hardware.drivers import Build, describe_allocator, fixed_segments_reason
from core.worker.process import environment
from tests.cases import cases

CUDA = Build("2.13.0", "13.0")


def prepared(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], *, wsl: bool = False, build: Build | None = CUDA
) -> dict[str, str]:
    """An environment after :func:`environment.prepare`."""
    found = dict(given)
    monkeypatch.setattr(os, "environ", found)
    monkeypatch.setattr(environment, "is_wsl", lambda: wsl)
    monkeypatch.setattr(environment, "installed_build", lambda: build)
    monkeypatch.setitem(sys.modules, "kernels", None)
    monkeypatch.setattr(logging.getLogger("bitsandbytes"), "level", logging.ERROR)
    with warnings.catch_warnings():
        environment.prepare()
    return found


def test_private_variables_are_set_whatever_the_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HF_HUB_OFFLINE": "0", "WANDB_MODE": "online", "TOKENIZERS_PARALLELISM": "true"}
    found = prepared(monkeypatch, given)
    assert found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == found["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert found["WANDB_MODE"] == "offline"
    assert (found["TOKENIZERS_PARALLELISM"], found["CUDA_DEVICE_ORDER"]) == ("true", "PCI_BUS_ID")
    assert prepared(monkeypatch, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


NEW, OLD = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"


@cases(
    ("given", "wsl", "settings", "words"),
    [
        ({}, False, dict.fromkeys((NEW, OLD), "expandable_segments:True"), "expandable segments"),
        ({}, True, dict.fromkeys((NEW, OLD), "expandable_segments:False"), "expandable segments are off under WSL 2"),
        ({NEW: "expandable_segments:False"}, False, None, f"({NEW}=expandable_segments:False)"),
        ({OLD: "expandable_segments:False"}, False, None, f"({OLD}=expandable_segments:False)"),
        ({NEW: "max_split_size_mb:128"}, False, None, "as you set it"),
        ({OLD: "max_split_size_mb:128"}, True, None, "as you set it"),
        ({NEW: "expandable_segments:True"}, True, None, "as you set it"),
        ({NEW: ""}, False, None, "as you set it"),
    ],
)
def test_the_allocator_is_as_the_user_said(
    given: dict[str, str], wsl: bool, settings: dict[str, str] | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(monkeypatch, given, wsl=wsl)
    # Where the user has set one name, torch must not find another setting under the other.
    assert {name: found[name] for name in (NEW, OLD) if name in found} == (given if settings is None else settings)
    assert words in describe_allocator(found, fixed_segments_reason(CUDA, wsl=wsl))


FLASH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


@cases(
    ("build", "flash", "segments"),
    [
        (CUDA, None, "True"),
        (None, None, "True"),
        (Build("2.12.0+rocm7.2", None, "7.2.26015-fc0010cf6a"), "1", "True"),
        (Build("2.11.0+rocm7.2", None, "7.2.26015"), "1", "False"),
        (Build("2.13.0+rocm6.4", None, "6.4.43484"), "1", "False"),
    ],
)
def test_torch_for_rocm_has_flash_attention_and_segments_that_it_can_expand(
    build: Build | None, flash: str | None, segments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(monkeypatch, {}, build=build)
    assert (found.get(FLASH), found[NEW]) == (flash, f"expandable_segments:{segments}")
    words = describe_allocator(found, fixed_segments_reason(build, wsl=False))
    assert words == "expandable segments" if segments == "True" else "on ROCm they begin with 2.12" in words
    assert prepared(monkeypatch, {FLASH: "0"}, build=build)[FLASH] == "0"


@pytest.mark.long
def test_torch_takes_the_allocator_and_no_native_code_is_fetched_for_bitsandbytes(tmp_path: Path) -> None:
    """A package called kernels, as the hub's is, must not even be asked."""
    (tmp_path / "kernels.py").write_text(
        "def __getattr__(name):\n"
        f"    open({str(tmp_path / 'asked')!r}, 'a').write(name + '\\n')\n"
        "    raise AttributeError(name)\n"
    )
    # Torch tells what its allocator has read from 2.11 on.
    code = (
        "from core.worker.process import environment; environment.prepare(); import bitsandbytes, torch, transformers; "
        "print(getattr(torch._C, '_accelerator_getAllocatorSettings', lambda: 'expandable_segments:True')())"
    )
    variables = {name: value for name, value in os.environ.items() if name not in (NEW, OLD)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**variables, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "expandable_segments:True"
    assert not (tmp_path / "asked").exists()
