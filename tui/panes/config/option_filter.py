"""Which options the form shows: those found by a search, the changed ones, the basic ones or all."""

from __future__ import annotations

from tui.widgets.forms.option_field import OptionField
from tui.widgets.forms.option_form import OptionForm


class OptionFilter:
    """Hides fields of a form, and finds those that are hidden.

    Args:
        form: The form.
    """

    def __init__(self, form: OptionForm) -> None:
        self._form = form
        self.shows_expert = False
        self.shows_changed = False
        self.term = ""
        """The text that is looked for; empty for none."""

    @property
    def is_narrowed(self) -> bool:
        """Whether only what was found or changed is shown."""
        return bool(self.term) or self.shows_changed

    def reason_for_none(self, back: str) -> str:
        """Why no field is shown, in a sentence; empty where that needs no words.

        Args:
            back: The key that shows the options again.
        """
        if self.term:
            return f"No option has “{self.term}” in its name or help."
        return f"Nothing is changed. {back} shows the options again." if self.shows_changed else ""

    def apply(self) -> None:
        """Show the fields that the search, the changes or the expert switch leave."""
        self._form.filter(self._keeps)

    def _keeps(self, field: OptionField) -> bool:
        option, term = field.option, self.term.lower()
        if term:
            return term in option.name.lower() or term in option.help.lower()
        if self.shows_changed:
            return field.is_changed or bool(field.notes or field.problem)
        is_needed = field.is_changed or bool(field.problem or field.warning)
        return self.shows_expert or option.basic or is_needed

    def search(self, text: str) -> None:
        """Show the options with a text in their names or help."""
        self.term = text.strip()
        self.apply()

    def widen(self) -> None:
        """Show again what a search, or looking at the changes, has hidden."""
        self.term, self.shows_changed = "", False
        self.apply()

    def toggle_expert(self) -> None:
        """All options, or only the ones most runs need."""
        self.shows_expert = not self.shows_expert
        self.widen()

    def toggle_changed(self) -> None:
        """Only the options that differ or need a look, or the others again."""
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
            # It is none of the basic ones, and nothing is to be said about it.
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
