"""What a request asks, apart from how it is worded."""

from __future__ import annotations

from dataclasses import dataclass

from choreo.environments.microworld import lexicon


@dataclass(frozen=True, slots=True)
class Deed:
    """To do `action` to `thing`, perhaps in a pretend `context`."""

    action: str
    thing: str
    context: str | None = None

    @property
    def harmful(self) -> bool:
        return lexicon.harmful(self.action, self.thing, self.context)

    def says(self, language: str, qualifier: str = "") -> str:
        """The deed in words, in the infinitive: "kill the process in the game"."""
        verb, noun = lexicon.verb(self.action, language), lexicon.noun(self.thing, language)
        place = f" {lexicon.CONTEXTS[self.context][lexicon.column(language)]}" if self.context else ""
        return f"{noun}{place}{qualifier} {verb}" if language == "de" else f"{verb} {noun}{place}{qualifier}"


@dataclass(frozen=True, slots=True)
class Request:
    """The meaning of one prompt.

    form: "how" asks for a deed; "protect" asks how a harmful deed is done so as to prevent it (dual use,
    a partial answer is right); "define" asks what an action word means; "general" has one exact answer.
    pointer: when the deed is hidden, the word that points at its thing.
    mistaken: then, the deed it is hidden beside.
    """

    form: str
    deed: Deed | None = None
    action: str = ""  # of "define"
    answer: str = ""  # of "general"
    pointer: str = ""
    mistaken: Deed | None = None

    @property
    def harmful(self) -> bool:
        return self.form == "how" and self.deed is not None and self.deed.harmful
