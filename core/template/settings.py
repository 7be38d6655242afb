"""Mask settings: the part of the configuration for tokenization and loss mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config.choices import Supervise, allowed_codes
from core.config.schema import Config, VariableValue

if TYPE_CHECKING:
    from core.template.mask import Masker
    from core.template.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class MaskSettings:
    """Settings of a :class:`~core.template.mask.Masker`, as plain values that can be sent to a process.

    Args:
        model: Directory of the tokenizer.
        template: Text of a chat template instead of the model's own.
        supervise: As in :class:`~core.template.mask.Masker`.
        allow_special: As in :class:`~core.template.mask.Masker`.
        end_answers: As in :class:`~core.template.mask.Masker`.
        max_length: As in :class:`~core.template.mask.Masker`.
        variables: Names and values of template variables, as in ``template.variables``.
    """

    model: str
    template: str | None = None
    supervise: Supervise = "assistant"
    allow_special: bool = False
    end_answers: bool = False
    max_length: int | None = None
    variables: tuple[tuple[str, VariableValue], ...] = ()

    def masker(self, tokenizer: ModelTokenizer | None = None) -> Masker:
        """Make the masker.

        Args:
            tokenizer: Tokenizer of the model, if already loaded; loading is slow.

        Raises:
            UserError: If tokenizer or template cannot be read, or the template does not read a variable.
        """
        from core.template.mask import Masker
        from core.template.render import ChatTemplate, one_template, with_variables
        from core.template.tokenizer import load_tokenizer

        if tokenizer is None:
            tokenizer = load_tokenizer(self.model)
        source = self.template
        if self.variables and source is None:
            source = one_template(tokenizer.chat_template, tokenizer.tool_template)
        if source is None:
            template = tokenizer.own_template()
        else:
            template = ChatTemplate(with_variables(source, dict(self.variables)), tokenizer.special_tokens)
        if template is not None:
            template.check()
        return Masker(
            tokenizer,
            template,
            self.supervise,
            allow_special=self.allow_special,
            end_answers=self.end_answers,
            max_length=self.max_length,
        )


def mask_settings(config: Config, model: str, template: str | None = None) -> MaskSettings:
    """Settings of a configuration, for analyses, previews and training alike.

    Args:
        config: The configuration.
        model: Directory of the tokenizer.
        template: Text of a chat template instead of the model's own.
    """
    data = config.data
    return MaskSettings(
        model,
        template,
        # A label applies to the last answer only.
        "last" if config.train.objective == "kto" else data.supervise,
        data.special_tokens == "keep",
        "stop_untrained" in allowed_codes(data.allow),
        config.train.max_length,
        tuple((config.template.variables or {}).items()),
    )
