"""The option filter of the form: search results, changed options, basic ones, or experts' ones too.

Options for the file alone (:data:`core.config.schema.Audience`) are shown where they are set or have a finding, and by
a search.
"""

from __future__ import annotations

from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm


class OptionFilter:
    """Hides fields of a form, and finds hidden ones.

    Args:
        form: The form.
    """

    def __init__(self, form: OptionForm) -> None:
        self._form = form
        self.shows_expert = False
        self.shows_changed = False
        self.term = ""
        """The search text; empty for none."""

    @property
    def is_narrowed(self) -> bool:
        """Whether only search results or changed options are shown."""
        return bool(self.term) or self.shows_changed

    def reason_for_none(self, back: str) -> str:
        """The reason why no field is shown, in a sentence; empty where none is needed.

        Args:
            back: The key that shows the options again.
        """
        if self.term:
            return f"No option has “{self.term}” in its name or help."
        return f"Nothing is changed. {back} shows the options again." if self.shows_changed else ""

    def apply(self) -> None:
        """Show the fields that pass the search, the changes or the expert switch."""
        self._form.filter(self._keeps)

    def _keeps(self, field: OptionField) -> bool:
        option, term = field.option, self.term.lower()
        if term:
            return term in option.name.lower() or term in option.help.lower()
        if self.shows_changed:
            return field.is_changed or bool(field.notes or field.problem)
        if field.is_changed or field.problem or field.warning:
            return True
        return option.audience == "basic" or (self.shows_expert and option.audience == "expert")

    def search(self, text: str) -> None:
        """Show the options with a text in their names or help; the cursor goes to the first one with it in its name."""
        self.term = text.strip()
        self.apply()
        term = self.term.lower()
        named = next((field for field in self._form.shown if term and term in field.option.key.lower()), None)
        if named is not None:
            self._form.go_to(named)

    def widen(self) -> None:
        """Clear the search, or the restriction to changed options."""
        self.term, self.shows_changed = "", False
        self.apply()

    def toggle_expert(self) -> None:
        """Switch between the options that most runs need and those for experts too."""
        self.shows_expert = not self.shows_expert
        self.widen()

    def toggle_changed(self) -> None:
        """Switch between the options that differ or need a look and the others."""
        self.shows_changed, self.term = not self.shows_changed, ""
        self.apply()

    def go_to(self, name: str) -> None:
        """Put the cursor on an option, and show it where it is hidden."""
        field = self._form.field(name)
        if field is None:
            return
        if not field.display:
            self.widen()
        if not field.display:
            # Neither basic nor with a finding.
            if field.option.audience == "file":
                self.term = name
            else:
                self.shows_expert = True
            self.apply()
        self._form.go_to(field)

    def next_problem(self) -> str:
        """The next option with a problem, or with a warning where there is no problem; empty where none has any."""
        fields = self._form.fields
        wrong = [field for field in fields if field.problem] or [field for field in fields if field.warning]
        current = self._form.current
        here = fields.index(current) if current is not None else -1
        following = [field for field in wrong if fields.index(field) > here]
        return (following or wrong)[0].option.name if wrong else ""
