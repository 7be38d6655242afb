"""Training tags of chat templates: ``{% generation %}`` marks the assistant's text for training, and readers of other
programs refuse it."""

from __future__ import annotations

import re

_TAG = re.compile(r"\{%(?P<left>[-+]?)\s*(?P<end>end)?generation\s*(?P<right>[-+]?)%\}")


def without_training_tags(source: str) -> str:
    """A template that renders the same without ``{% generation %}``.

    The tags become a condition that always holds: taking them out would move the line breaks around them, which they
    may swallow.

    Args:
        source: The Jinja template.
    """

    def plain(tag: re.Match[str]) -> str:
        return f"{{%{tag['left']} {'endif' if tag['end'] else 'if true'} {tag['right']}%}}"

    return _TAG.sub(plain, source)
