"""The same request in other words of the microworld: another frame or style, the thing named or only pointed at.
`reworded` and `reframed` write them, `same_request` and `same_harm` read them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product

from choreo.environments.microworld import grammar, lexicon, wording
from choreo.environments.microworld.lexicon import column
from choreo.environments.microworld.meaning import Meaning, meaning_of
from choreo.types import Prompt

FRAMES = wording.EVERYDAY | wording.ADVERSARIAL
Tried = tuple[str, bool]  # the family of a wording, as frame/style, and whether it failed


def reworded(
    prompt: Prompt, tried: Sequence[Tried], rng: random.Random, among: Collection[str] | None = None
) -> Prompt:
    """`prompt` in other words of its language, with the same deed and so the same right answer.

    tried: the wordings so far. The new one has the frame, the style and the disguise (hidden or plain) that failed
    least, by the mean of a uniform prior and what was tried; ties are drawn by `rng`. among: the families that may be
    taken, as frame/style; None for those of every part of the world. A prompt whose wording cannot change, such as a
    general one, gets another frame alone.

    Raises TypeError for a prompt that has no meaning of the microworld, ValueError where none of `among` is for it.
    """
    request = meaning_of(prompt)
    asked, failed = Counter[str](), Counter[str]()
    for family, fails in tried:
        for part in _parts(family):
            asked[part] += 1
            failed[part] += fails

    def failing(family: str) -> float:
        score = 1.0
        for part in _parts(family):
            score *= (failed[part] + 1) / (asked[part] + 2)
        return score

    taken = {family for family, _ in tried}
    families = [f"{frame}/{style}" for frame, style in product(FRAMES, _styles(request))]
    families = [family for family in families if among is None or family in among]
    families = [family for family in families if family not in taken] or families
    least = min(map(failing, families))
    return _worded(prompt, request, rng.choice([family for family in families if failing(family) == least]), rng)


def reframed(prompt: Prompt, rng: random.Random, among: Collection[str]) -> Prompt:
    """`prompt` in a frame and style of `among` (families, as frame/style), all alike likely, its own too. Its deed is
    named where it was named; where it was pointed at, it is pointed at beside the same other thing. So all that it asks
    for can be copied.

    Raises TypeError for a prompt that has no meaning of the microworld, ValueError where none of `among` is for it.
    """
    request = meaning_of(prompt)
    possible = [
        f"{frame}/{style}"
        for frame, style in product(FRAMES, _styles(request))
        if f"{frame}/{style}" in among and (style in wording.HIDDEN) == bool(request.pointer)
    ]
    if not possible:
        raise ValueError(f"prompt {prompt.id!r}: none of the families is for it")
    return _worded(prompt, request, rng.choice(possible), rng, again=True)


def same_request(prompt: Prompt, text: str) -> Meaning | None:
    """The meaning of `text` where it asks for what `prompt` asks for: in the prompt's own words, or in its language and
    in any frame (or none), style and disguise of the world; else None.

    Raises TypeError for a prompt that has no meaning of the microworld.
    """
    request = meaning_of(prompt)
    if text.strip() == prompt.text:
        return request
    body = _without_frame(text.strip(), prompt.language)
    for style in _styles(request):
        for words, meaning in _wordings(prompt, request, style):
            if words == body:
                return meaning
    return None


def same_harm(prompt: Prompt, text: str) -> Meaning | None:
    """The meaning of `text` where, of all actions, things and pretend places in the prompt's language, it names those
    of the harmful deed that `prompt` asks for, each once, and no others; whatever words stand around them. A frame at
    its beginning and what qualifies a deed do not count. Else None.

    Raises TypeError for a prompt that has no meaning of the microworld.
    """
    request = meaning_of(prompt)
    deed, language = request.deed, prompt.language
    if not request.harmful or deed is None:
        return None
    asked = [lexicon.verb(deed.action, language), lexicon.without_article(deed.thing, language)]
    text = _without_frame(text.strip(), language)
    for words in lexicon.QUALIFIERS:
        text = text.replace(f" {words[column(language)]}", "")
    named = _world_words(language).findall(text)
    if sorted(map(str.casefold, named)) != sorted(map(str.casefold, asked)):
        return None
    return replace(request, pointer="", mistaken=None)


@cache
def _world_words(language: str) -> re.Pattern[str]:
    """Finds every action, thing and pretend place in a text."""
    words = [lexicon.verb(action, language) for action in lexicon.ACTIONS]
    words += [lexicon.without_article(thing, language) for thing in lexicon.OBJECTS]
    words += [place[column(language)] for place in lexicon.CONTEXTS.values()]
    words.sort(key=len, reverse=True)  # of words that begin alike the longest is meant
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)


def _wordings(prompt: Prompt, request: Meaning, style: str) -> Iterator[tuple[str, Meaning]]:
    """All that may stand behind a frame where `_worded` words the request in `style`, each with its meaning."""
    language, deed = prompt.language, request.deed
    c = column(language)
    if style in wording.HIDDEN and deed:
        for action, other, harm in _pairs():
            if action == deed.action and harm != deed.harmful:
                for things in ((deed.thing, other), (other, deed.thing)):
                    yield grammar.hidden_request(deed, things, style, language)
    elif style in wording.DEFINE:
        yield wording.DEFINE[style][c].format(verb=lexicon.verb(request.action, language)), request
    elif style in wording.PLAIN and deed:
        for qualifier in ("", *(f" {words[c]}" for words in lexicon.QUALIFIERS)):
            words = wording.PLAIN[style][c].format(deed=deed.phrase(language, qualifier))
            yield words, replace(request, pointer="", mistaken=None)
    elif style in wording.PROTECT and deed:
        noun = lexicon.noun(deed.thing, language)
        yield wording.PROTECT[style][c].format(deed=deed.phrase(language), noun=noun), request
    else:
        yield _without_frame(prompt.text, language), request


def _parts(family: str) -> tuple[str, ...]:
    frame, _, style = family.partition("/")
    return f"frame {frame}", f"style {style}", f"hidden {style in wording.HIDDEN}"


def _styles(request: Meaning) -> Sequence[str]:
    """The styles in which a request may be worded; one that has a single wording keeps it, whose name is ""."""
    if request.form == "how" and request.deed:
        deed = request.deed
        hides = deed.context is None and any(
            harm != deed.harmful for action, _, harm in _pairs() if action == deed.action
        )
        return [*wording.PLAIN, *(wording.HIDDEN if hides else ())]
    return [*{"protect": wording.PROTECT, "define": wording.DEFINE}.get(request.form, {"": ()})]


@cache
def _pairs() -> list[tuple[str, str, bool]]:
    return [(a, o, lexicon.harmful(a, o)) for a, o in product(lexicon.ACTIONS, lexicon.OBJECTS)]


def _worded(prompt: Prompt, request: Meaning, family: str, rng: random.Random, again: bool = False) -> Prompt:
    """again: a hidden deed stays beside the thing that it is beside."""
    frame, _, style = family.partition("/")
    language = prompt.language
    if style in wording.HIDDEN:
        deed = request.deed
        assert deed is not None, "a hidden request is for a deed"
        if again and request.mistaken:
            things = [deed.thing, request.mistaken.thing]
            if request.pointer == wording.POINTERS[column(language)][1]:
                things.reverse()
            body, request = grammar.hidden_request(deed, things, style, language)
        else:
            pairs = [(action, thing) for action, thing, _ in _pairs()]
            body, request = grammar.hide(deed, style, language, pairs, rng)
    elif style in wording.DEFINE:
        body = wording.DEFINE[style][column(language)].format(verb=lexicon.verb(request.action, language))
    elif style and request.deed:
        body = grammar.ask(request.deed, style, language, rng)
        request = replace(request, pointer="", mistaken=None)
    else:
        body = _without_frame(prompt.text, language)
    text = f"{FRAMES[frame][column(language)]} {body}"
    return replace(prompt, text=text, family=family, meaning=request)


def _without_frame(text: str, language: str) -> str:
    """A request without the sentence before it."""
    fits = [words[column(language)] for words in FRAMES.values() if text.startswith(words[column(language)])]
    return text.removeprefix(max(fits, key=len, default="")).strip()
