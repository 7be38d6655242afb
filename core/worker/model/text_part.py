"""The class that a base is loaded as: its causal language model; of a composite model only the text part.

Everything that builds or loads a base uses it, so that a run, its chat, its exports and their verification share the
same model: :func:`causal_lm` for class, configuration and names of weights, :func:`described_causal_lm` where there is
only a ``config.json``; :func:`whole_name` for the names of modules in the whole model, by which adapters are saved.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from core.errors import UserError
from core.models.description import KEY_MAPPING, as_files_are_tied, is_composite, is_tied, read_description, text_name
from core.models.tensors import read_weights
from core.text import one_line

#: Lists of layers, by name, in the configurations of saved quantizations.
_LAYER_LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "ignore")
#: Attributes of a loaded model: the whole model's configuration, and the names of body and head in the whole model.
_WHOLE, _PLACES = "_whole_config", "_places_in_whole"
#: Names of body and head in most whole models.
_USUAL_PLACES = ("model.language_model", "lm_head")


@dataclass(frozen=True)
class CausalLM:
    """Class and configuration for loading a base as a causal language model.

    Args:
        config: The configuration of the class; for a composite model its text part's.
        model_class: Its class in transformers.
        key_mapping: Names in the files to names in the class, for ``from_pretrained``; None where they are equal.
        whole: The configuration of the composite model; None where the base is text only.
    """

    config: Any
    model_class: Any
    key_mapping: dict[str, str] | None = None
    whole: Any = None

    def build(self, dtype: torch.dtype | None = None) -> Any:
        """The model without its weights, on the device ``meta``.

        Args:
            dtype: Dtype of its weights; None for the configuration's.
        """
        with torch.device("meta"):
            model = self.model_class._from_config(copy.deepcopy(self.config), dtype=dtype)
        if self.whole is not None:
            setattr(model, _WHOLE, self.whole)
        return model

    def load(self, base: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
        """The model with its weights; other parts are not read.

        Args:
            base: The directory.
            options: Options of ``from_pretrained``; they may name another source than the directory's files.

        Returns:
            The model, and transformers' loading report.
        """
        # Its report of unexpected weights would name those of every tower.
        with _quiet() if self.whole is not None else contextlib.nullcontext():
            model, loading = self.model_class.from_pretrained(
                **{"pretrained_model_name_or_path": base, "config": self.config, **options},
                key_mapping=self.key_mapping,
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        if self.whole is not None:
            # It is saved by the names of its own class.
            model._weight_conversions = [each for each in model._weight_conversions or () if not _is_ours(each)]
            setattr(model, _WHOLE, self.whole)
        return model, loading


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only errors in transformers' log inside."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _is_ours(conversion: Any) -> bool:
    return type(conversion) is WeightRenaming and conversion.source_patterns[0] in KEY_MAPPING


def causal_lm(base: Path) -> CausalLM:
    """The class and configuration of a base.

    Args:
        base: A directory with a ``config.json``; weights are optional.

    Raises:
        UserError: If transformers has no class for it that writes text, or for its text part alone.
        OSError, ValueError, KeyError: transformers' errors for a configuration that it cannot read.
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    said = read_description(base / "config.json") or {}
    names: Iterable[str] = ()
    if is_composite(said):
        # Missing or damaged weights are reported when they are loaded.
        with contextlib.suppress(UserError):
            names = read_weights(base)
    return _choose_class(config, as_files_are_tied(said, names), str(base))


def described_causal_lm(said: Mapping[str, Any], where: str) -> CausalLM:
    """The class and configuration of a base by its ``config.json`` alone.

    Args:
        said: The content of ``config.json``; it also decides if a composite model's embeddings are tied.
        where: Name of the model for messages.

    Raises:
        UserError: If the installed transformers does not know it, or has no class for it, as :func:`causal_lm`.
    """
    try:
        # JSON has no infinity; transformers writes and reads it in a form of its own.
        config = AutoConfig.for_model(**PreTrainedConfig._decode_special_floats(dict(said)))
    except Exception as error:  # a configuration from anyone fails in as many ways as there are lines
        raise cannot_be_built(where, str(said.get("model_type", "")), error) from error
    return _choose_class(config, said, where)


def cannot_be_built(where: str, family: str, error: Exception) -> UserError:
    """The error for a model that transformers cannot build from its configuration.

    Args:
        where: Name of the model for messages.
        family: Its ``model_type``.
        error: transformers' error.
    """
    # Some errors name the field in their first line and the problem in the next.
    why = one_line(" ".join(str(error).split()) or type(error).__name__, 200).rstrip(".:")
    return UserError(
        f"{where} is of the family {one_line(family, 60)}, and its memory cannot be measured: {why}.",
        "Check its config.json, or take a newer version of transformers.",
    )


def _choose_class(config: Any, said: Mapping[str, Any], base: str) -> CausalLM:
    """The class of a base, by its configuration object and the content of its ``config.json``."""
    found = _class_of(config)
    if not is_composite(said):
        if found is None:
            raise UserError(
                f"{base} is a {one_line(config.model_type, 60)}, not a causal language model.",
                "Choose a causal language model: one whose config.json names an architecture that ends with "
                "ForCausalLM.",
            )
        return CausalLM(config, found)
    if found is not None and found.config_class is type(config) and found.__name__.endswith("ForCausalLM"):
        return CausalLM(config, found)  # a language model whose configuration has a part of this name
    text = copy.deepcopy(config.get_text_config(decoder=True))
    own = _class_of(text)
    if own is None and found is not None and found.config_class is type(text):
        own = found
    if own is None:
        raise UserError(
            f"{base} is a {one_line(config.model_type, 60)}, which is made for more than text, and transformers "
            f"{transformers.__version__} cannot load its text part ({one_line(text.model_type, 60)}) alone.",
            "Choose a model of text only, or one whose text part has a class of its own, as Gemma 3 and Qwen3.5 have.",
        )
    tied = is_tied(said, None)
    text.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", False) if tied is None else tied)
    if text.dtype is None:
        text.dtype = config.dtype
    _carry_quantization(config, text)
    return CausalLM(text, own, dict(KEY_MAPPING), config)


def _class_of(config: Any) -> Any:
    return MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)


def _carry_quantization(whole: Any, text: Any) -> None:
    """Copy the whole model's saved quantization to the text part, with layers by its own names."""
    saved = copy.deepcopy(getattr(whole, "quantization_config", None))
    if isinstance(saved, dict):
        for key in _LAYER_LISTS:
            if isinstance(names := saved.get(key), list):
                saved[key] = [text_name(f"{name}.").removesuffix(".") for name in names]
    if saved is not None:
        text.quantization_config = saved


# Names in the whole model.


def is_text_part(model: Any) -> bool:
    """True if a model in memory is the text part of a composite one."""
    return getattr(model, _WHOLE, None) is not None


def whole_name(model: Any, name: str) -> str:
    """A module's or tensor's name in the whole model, by its name in the loaded text part.

    Args:
        model: The causal language model from :class:`CausalLM`.
        name: ``model.layers.0.self_attn.q_proj``.

    Returns:
        ``model.language_model.layers.0.self_attn.q_proj``; the name itself where the model is the whole.
    """
    if (whole := getattr(model, _WHOLE, None)) is None:
        return name
    if not hasattr(model, _PLACES):
        setattr(model, _PLACES, _find_places(whole, model))
    places: tuple[str, str] = getattr(model, _PLACES)
    for own, place in zip(("model", "lm_head"), places, strict=True):
        if name == own or name.startswith(f"{own}."):
            return place + name.removeprefix(own)
    return name


def _find_places(config: Any, model: Any) -> tuple[str, str]:
    """The names of body and head in the class of the whole model."""
    classes = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    found = next((mapping[type(config)] for mapping in classes if type(config) in mapping), None)
    if found is None:
        return _USUAL_PLACES
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            whole = found._from_config(copy.deepcopy(config))
    except Exception:  # towers may need libraries that text does without
        return _USUAL_PLACES
    names = {id(module): name for name, module in whole.named_modules()}
    body = next((name for name, module in whole.named_modules() if type(module) is type(model.model)), None)
    head = names.get(id(whole.get_output_embeddings()))
    return body or _USUAL_PLACES[0], head or _USUAL_PLACES[1]
