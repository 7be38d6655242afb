"""Plans of the models that people tune, by their published configurations."""

from __future__ import annotations

import pytest

from tests.families.published_models import DIRECTORY, PUBLISHED, published_config


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
    assert counted == PUBLISHED[name].built
