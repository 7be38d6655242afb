"""Fixtures of all tests: a private home, and models small enough to be made on the spot."""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli
from hypothesis import HealthCheck, settings

from core.errors import UserError
from core.models.architecture import measuring
from tests import examples, flaky, longest_first, measured_here
from tests.forking import Forks
from tests.tiny_model import CHATML as CHATML
from tests.tiny_model import write_tiny_model

# Importing the tests and what they test makes millions of objects and hardly any garbage.
gc.set_threshold(200_000, 50, 100)

# The machine may be busy; the duration of an example says nothing about the code. The examples are the same ones each
# time, so that a change answers for its own failures, and few enough to go through with each change;
# 'pytest --hypothesis-profile=search' draws new ones, and three times as many (tests/examples.py).
settings.register_profile(examples.SEARCH, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile(examples.SEARCH), derandomize=True, max_examples=40)
# Few examples of each property, for 'make check' and 'make test'.
settings.register_profile(examples.QUICK, settings.get_profile("steady"), max_examples=15)
settings.load_profile("steady")

#: The beginnings of paths of slow tests, and of quick ones among these.
SLOW, QUICK = map(tuple, tomli.loads(Path(__file__).with_name("slow.toml").read_text(encoding="utf-8")).values())
#: A module with this line has long tests only.
LONG = re.compile(r"^pytestmark = pytest\.mark\.long$", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    flaky.pytest_addoption(parser)
    longest_first.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    flaky.pytest_configure(config)
    longest_first.pytest_configure(config)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave modules of long tests out before they are imported, where no long test is to run."""
    if "not long" not in config.getoption("markexpr") or collection_path.suffix != ".py":
        return None
    return bool(LONG.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the slow tests, and sort all by the duration of their modules where they run side by side."""
    root = Path(__file__).resolve().parents[1]
    for item in items:
        name = item.path.relative_to(root).as_posix()
        if name.startswith(SLOW) and not name.startswith(QUICK):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        longest_first.sort_longest_first(items)


def pytest_collection_finish() -> None:
    """Leave what has been collected, and the libraries, out of garbage collection: nothing of it is ever garbage, and
    looking through it again and again took a quarter of the time of a test that drives the app."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 10)
    # At the end it is freed like everything else: libraries print what of theirs is left.
    atexit.register(gc.unfreeze)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish() -> None:
    """Leave all that is still there out of garbage collection: pytest collects five times at the end, which looks
    through the libraries each time."""
    gc.collect()
    gc.freeze()


# A job in the background of a shell ignores ctrl-c, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Draws that a test makes without a seed are the same each time, so that it cannot fail once in a hundred runs."""
    random.seed(0)
    # Most tests need neither, and importing them takes seconds.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def forks() -> Iterator[Forks]:
    """Fork server of the worker's processes, in all tests that are not marked ``anew``."""
    made = Forks()
    with made.replacing():
        yield made
    made.close()


@pytest.fixture(autouse=True)
def _forked_or_anew(request: pytest.FixtureRequest, forks: Forks) -> Iterator[None]:
    """Fork the processes of this test, unless it is marked ``anew``."""
    forks.anew = request.node.get_closest_marker("anew") is not None
    yield
    forks.anew = False


@pytest.fixture(scope="session")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a directory of a test. pytest's own looks at all that there are to find the next number, which takes 6 ms
    where there are ten thousand: a minute of a whole run."""
    base = tmp_path_factory.mktemp("t", numbered=False)
    numbers = itertools.count()

    def make(name: str) -> Path:
        directory = base / f"{name}{next(numbers)}"
        directory.mkdir(mode=0o700)
        return directory

    return make


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, make_directory: Callable[[str], Path]) -> Path:
    """As pytest's fixture of this name."""
    # No longer than pytest's own: the path of a socket has an end.
    return make_directory(re.sub(r"\W", "_", request.node.name)[:24])


@pytest.fixture(autouse=True)
def private_home(make_directory: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private home for every test; the user's own is never touched."""
    home = make_directory("home")
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "localtune"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Set by a worker's preparation, which some tests call in this process; it would affect the other tests.
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    return home / "localtune"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of the tests that all of its processes share."""
    base = tmp_path_factory.getbasetemp()
    # A process of pytest-xdist has a directory within the one of all.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def measurements(shared: Path) -> Iterator[Path]:
    """Measurements of models that the tests of this run have made, in all of its processes."""
    (directory := shared / "measured").mkdir(mode=0o700, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(measured_here.DIRECTORY, str(directory))
        patch.setattr(measuring, "_directory", measuring._directory)
        measured_here.share_measurements()
        yield directory


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and ChatML, as a directory of safetensors."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@contextlib.contextmanager
def _kept_home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Inside, the home is one for what is fetched once and kept: ``LOCALTUNE_TEST_CACHE`` (default: pytest's cache
    directory). The test is skipped where it cannot be had."""
    default = request.config.rootpath / ".pytest_cache" / "localtune"
    home = os.environ.get("LOCALTUNE_TEST_CACHE") or str(default)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", home)
        try:
            yield Path(home)
        except UserError as error:
            pytest.skip(f"not at hand: {error}")


@pytest.fixture(scope="session")
def starter_model_dir(request: pytest.FixtureRequest) -> Path:
    """The starter model, converted once and kept."""
    from core.worker.model.starter import prepare_starter

    with _kept_home(request):
        return prepare_starter(lambda _detail, _done, _total: None)


@pytest.fixture(scope="session")
def converter_home(request: pytest.FixtureRequest) -> Path:
    """A home with llama.cpp's converter, fetched once and kept where the starter model is."""
    from core.worker.export.gguf.converter import fetch_converter

    with _kept_home(request) as home:
        fetch_converter(lambda _detail, _done, _total: None)
    return home


@pytest.fixture
def converter(converter_home: Path, private_home: Path) -> Path:
    """llama.cpp's converter in this test's own home; its directory."""
    from core.worker.export.gguf.converter import find_converter

    shutil.copytree(converter_home / "tools", private_home / "tools", ignore=shutil.ignore_patterns(".*", "*.whl"))
    found = find_converter()
    assert found is not None
    return found
