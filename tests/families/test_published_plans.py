"""Plans of the models that people tune, by their published configurations."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pytest

from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture.architecture import Architecture
from core.models.architecture.families import read_architecture
from core.presets.choose import fits_card
from tests.families.published_models import DIRECTORY, PUBLISHED, published_config

GIB = 1 << 30
TOWER = re.compile("vision|visual|audio|projector")
CARDS = (12, 16, 24)

#: QLoRA with adapters of rank 16 on all linear layers, rows of 2,048 tokens one by one, 16 of them in a step, as in the
#: presets. The GiB are needed with everything on the card. On each card the run fits as it is (``yes``), with inputs of
#: recomputed layers in the machine's memory (``inputs``), with the experts there (``experts``), or not (``no``).
TABLE = """
model                      GiB    12 GB     16 GB     24 GB
Qwen3-30B-A3B             17.9    experts   experts   yes
Qwen3-4B                   4.1    yes       yes       yes
Qwen3-8B                   7.8    yes       yes       yes
Qwen3-14B                 12.1    inputs    yes       yes
Qwen3-32B                 22.3    no        no        yes
Gemma-3-4B                 4.7    yes       yes       yes
Gemma-3-12B               10.0    yes       yes       yes
Gemma-3-27B               19.5    no        no        yes
gpt-oss-20b               18.7    experts   experts   yes
Mistral-Small-3.2-24B     16.7    no        no        yes
Llama-3.1-8B               7.4    yes       yes       yes
Llama-3.2-1B               2.2    yes       yes       yes
Llama-3.2-3B               3.7    yes       yes       yes
Phi-4                     11.3    yes       yes       yes
Phi-4-mini                 4.3    yes       yes       yes
SmolLM3-3B                 3.4    yes       yes       yes
"""


class Figure(NamedTuple):
    """Memory that others have published, in the unit that they write, read as GiB where a card's tool shows it.

    Args:
        gib: Their figure.
        source: Where it stands.
        model: The model of ours that has its shape.
        bounds: Least and most share of it that our plan may take.
        settings: Options as they have them, or as we assume them where they do not say.
    """

    gib: float
    source: str
    model: str
    bounds: tuple[float, float]
    settings: dict[str, Any]


#: They say what they ran: the plan agrees within a fifth. Ours has the context and fragmentation, theirs may not.
RAN = (0.8, 1.2)
#: Least memory that is claimed for a size of model, without settings; most likely short rows and few adapters.
CLAIMED = (0.7, 1.5)

TORCHTUNE = "pytorch/torchtune README.md, table of memory and training speed (micro-batch 2, packed to 2,048)"
AXOLOTL = "axolotl-ai-cloud/axolotl examples/"
UNSLOTH = "unsloth.ai/docs/get-started/fine-tuning-for-beginners/unsloth-requirements"
FACTORY = "hiyouga/LLaMA-Factory README.md, hardware requirement, QLoRA in 4 bits"

FIGURES = [
    Figure(7.4, TORCHTUNE, "Llama-3.1-8B", RAN, {"micro_batch": 2, "rank": 8, "optimizer": "adamw"}),
    Figure(16.2, TORCHTUNE, "Llama-3.1-8B", RAN, {"method": "lora", "micro_batch": 2, "rank": 8, "optimizer": "adamw"}),
    Figure(19.1, AXOLOTL + "magistral/think", "Mistral-Small-3.2-24B", RAN, {"micro_batch": 2, "rank": 32}),
    # The same settings as the one above, for another release of the model.
    Figure(24.0, AXOLOTL + "magistral", "Mistral-Small-3.2-24B", CLAIMED, {"micro_batch": 2, "rank": 32}),
    Figure(
        21.0, AXOLOTL + "devstral", "Mistral-Small-3.2-24B", RAN, {"micro_batch": 2, "rank": 32, "optimizer": "adamw"}
    ),
    Figure(17.5, "qwen.readthedocs.io/zh-cn/latest/training/unsloth.html", "Qwen3-30B-A3B", RAN, {}),
    Figure(14.0, "unsloth.ai/blog/gpt-oss", "gpt-oss-20b", RAN, {"length": 1024, "rank": 8}),
    Figure(3.5, UNSLOTH, "Llama-3.2-3B", CLAIMED, {}),
    Figure(6.0, UNSLOTH, "Llama-3.1-8B", CLAIMED, {}),
    Figure(8.5, UNSLOTH, "Qwen3-14B", CLAIMED, {}),
    Figure(22.0, UNSLOTH, "Gemma-3-27B", CLAIMED, {}),
    Figure(26.0, UNSLOTH, "Qwen3-32B", CLAIMED, {}),
    Figure(6.0, FACTORY, "Qwen3-8B", CLAIMED, {"rank": 8}),
    Figure(12.0, FACTORY, "Phi-4", CLAIMED, {"rank": 8}),
    Figure(24.0, FACTORY, "Qwen3-32B", CLAIMED, {"rank": 8}),
]


def test_every_configuration_has_its_numbers_and_its_source() -> None:
    """The files, the table of numbers and the list of sources name the same models."""
    files = {path.stem for path in DIRECTORY.glob("*.json")}
    sources = (DIRECTORY / "SOURCES.md").read_text(encoding="utf-8")
    first = [line.split("|")[1].strip() for line in sources.splitlines() if line.startswith("| ")]
    named = set()
    for cell in first:
        head, *more = (part.strip() for part in cell.split(","))
        named |= {head, *(f"{head[: head.rindex('-')]}-{size}" for size in more)}
    assert files == set(PUBLISHED)
    assert files <= named


def test_every_model_that_is_planned_is_in_the_table() -> None:
    planned = {name for name in PUBLISHED if _known(published_config(name)) is not None}
    assert planned == set(_rows())


@pytest.mark.parametrize("name", [line.split()[0] for line in TABLE.strip().splitlines()[1:]])
def test_what_fits_on_which_card(name: str) -> None:
    gib, *fits = _rows()[name]
    model = read_architecture(published_config(name), name)
    needed = _plan(model).needed_bytes / GIB
    assert needed == pytest.approx(float(gib), rel=0.02, abs=0.06)
    assert [_fits(model, card) for card in CARDS] == fits


@pytest.mark.parametrize("name", [line.split()[0] for line in TABLE.strip().splitlines()[1:]])
def test_a_plan_has_the_published_number_of_parameters(name: str) -> None:
    """To the element: that of the model, or of its text part where towers are left out, but for a scalar a layer."""
    published = PUBLISHED[name]
    planned = read_architecture(published_config(name), name).parameters
    assert planned == published.built or planned == pytest.approx(published.text, abs=64)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: f"{figure.model}, {figure.source}")
def test_the_plan_is_near_what_others_have_published(figure: Figure) -> None:
    values = published_config(figure.model)
    # Magistral and Devstral, which theirs are, have no vision tower.
    model = read_architecture(values["text_config"] if "Mistral" in figure.model else values, figure.model)
    least, most = figure.bounds
    assert least <= _plan(model, **figure.settings).needed_bytes / GIB / figure.gib <= most


def test_a_mixture_of_30_billion_trains_on_24_and_on_12_gb() -> None:
    """22 GB are what the preset for 30B on a card of 24 GB may take; experts4bit-qlora claims 10.5 GB on one of 12."""
    model = read_architecture(published_config("Qwen3-30B-A3B"), "Qwen3-30B-A3B")
    assert _plan(model).needed_bytes <= 22e9
    small = _plan(model, card=12)
    assert small.needed_bytes <= 10.5e9
    assert 14e9 < small.experts_host_bytes < 16e9


def _rows() -> dict[str, list[str]]:
    return {name: cells for name, *cells in (line.split() for line in TABLE.strip().splitlines()[1:])}


def _known(values: dict[str, Any]) -> Architecture | None:
    """The model if its family's layers are known; None if it is refused, or read like Llama."""
    try:
        model = read_architecture(values, "model")
    except UserError:
        return None
    return None if model.guessed else model


def _plan(
    model: Architecture,
    *,
    method: str = "qlora",
    micro_batch: int = 1,
    length: int = 2048,
    rank: int = 16,
    optimizer: str = "paged_adamw_8bit",
    card: int | None = None,
) -> Plan:
    config = Config.model_validate(
        {
            "data": {"train": "rows.jsonl"},
            "method": {"name": method, "rank": rank},
            "train": {
                "batch_size": 16,
                "micro_batch_size": micro_batch,
                "max_length": length,
                "optimizer": optimizer,
            },
            "memory": {"gradient_checkpointing": "on"},
        }
    )
    limit = None if card is None else int(0.95 * card * GIB)
    budget = micro_batch * length if card is None else None
    return make_plan(model, config, Machine("cuda", limit_bytes=limit), token_budget=budget)


def _fits(model: Architecture, card: int) -> str:
    plan = _plan(model, card=card)
    if not fits_card(plan.needed_bytes, card * GIB):
        return "no"
    if plan.experts_host_bytes:
        return "experts"
    return "inputs" if plan.offload else "yes"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_of_a_configuration_has_the_published_number_of_parameters(name: str) -> None:
    """Transformers builds each model on the meta device; every tensor that is loaded is one that was published."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    values = published_config(name)
    values.pop("quantization_config", None)
    loader = AutoModelForImageTextToText if "vision_config" in values else AutoModelForCausalLM
    config = AutoConfig.for_model(**values)
    with torch.device("meta"):
        model = loader.from_config(config)
    # Saved buffers are tensors of the checkpoint as well; the ranges of Gemma 4's clipped layers are not in the number.
    saved = model.state_dict(keep_vars=True)
    buffers = [buffer for key, buffer in model.named_buffers() if key in saved and not key.endswith(("_min", "_max"))]
    counted = sum(tensor.numel() for tensor in (*model.parameters(), *buffers))
    published = PUBLISHED[name]
    assert counted == published.built
    named = [*model.named_parameters(), *((key, buffer) for key, buffer in model.named_buffers() if key in saved)]
    towers = sum(tensor.numel() for key, tensor in named if TOWER.search(key) and not key.endswith(("_min", "_max")))
    assert (counted - towers if towers else None) == published.text
