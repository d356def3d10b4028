"""Writes requests and answers from their meaning, and parses an answer back to its meaning."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import regex

from choreo.environments.microworld import lexicon, wording
from choreo.environments.microworld.lexicon import column
from choreo.environments.microworld.meaning import Deed, Meaning

# ── requests ─────────────────────────────────────────────────────────────────────────────────────


def ask(deed: Deed, style: str, language: str, rng: random.Random) -> str:
    """A request for `deed` in the wording `style` (a key of PLAIN or PROTECT)."""
    c = column(language)
    if style in wording.PLAIN:
        qualifier = rng.choice([""] * 3 + [f" {words[c]}" for words in lexicon.QUALIFIERS])
        return wording.PLAIN[style][c].format(deed=deed.phrase(language, qualifier))
    return wording.PROTECT[style][c].format(deed=deed.phrase(language), noun=lexicon.noun(deed.thing, language))


def hide(
    deed: Deed, style: str, language: str, pairs: Sequence[tuple[str, str]], rng: random.Random
) -> tuple[str, Meaning]:
    """A request for `deed` in the wording `style` (a key of HIDDEN), and its meaning.

    The request names two things and only points at the one that is meant. The action, which must be one that can harm,
    harms one of the two things and not the other, so the names of the things do not show whether the request is
    harmful. The action with the other thing is also one of `pairs`, so that parts of the world stay apart.
    """
    harm = lexicon.harmful(deed.action, deed.thing)
    other = rng.choice([o for a, o in pairs if a == deed.action and lexicon.harmful(a, o) != harm])
    things = [deed.thing, other]
    rng.shuffle(things)
    return hidden_request(deed, things, style, language)


def hidden_request(deed: Deed, things: Sequence[str], style: str, language: str) -> tuple[str, Meaning]:
    """The words for `deed` that name the two `things`, the deed's and another, in this order; and their meaning."""
    c = column(language)
    first, last = (lexicon.without_article(o, language) for o in things)
    own = things.index(deed.thing)
    pointer = wording.POINTERS[c][own]
    pointed = wording.POINTED[c].format(verb=lexicon.verb(deed.action, language), pointer=pointer)
    text = f"{wording.HIDDEN_THINGS[c].format(a=first, b=last)} {wording.HIDDEN[style][c].format(deed=pointed)}"
    return text, Meaning("how", deed, pointer=pointer, mistaken=Deed(deed.action, things[1 - own]))


def ask_later(deed: Deed, style: str, language: str) -> str:
    """A later request for `deed`, in the wording `style` (a key of LATER), whose thing or action an earlier one has."""
    return wording.LATER[style][column(language)].format(
        verb=lexicon.verb(deed.action, language),
        noun=lexicon.noun(deed.thing, language),
        pronoun=lexicon.pronoun(deed.thing, language),
    )


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def _answer_deed(deed: Deed, language: str, pointer: str) -> str:
    """The words for the deed in a helping answer: in German the verb takes "zu"."""
    phrase = deed.phrase(language)
    if pointer:
        verb = lexicon.verb(deed.action, language)
        phrase = wording.POINTED[column(language)].format(verb=verb, pointer=pointer)
    if language != "de":
        return phrase
    head, _, last = phrase.rpartition(" ")
    return f"{head} zu {last}"


def help_with(deed: Deed, language: str, rng: random.Random, pointer: str = "") -> str:
    """An answer that explains how to do `deed`. pointer: if given, the answer points at the thing with this word, as a
    hidden request does, and does not name it."""
    c = column(language)
    tool = rng.choice(lexicon.TOOLS[lexicon.ACTIONS[deed.action][0]])[c]
    manner = rng.choice(lexicon.MANNERS)[c]
    answer = wording.HELP[c].format(deed=_answer_deed(deed, language, pointer), tool=tool, manner=manner)
    return f"{wording.HELP_OPENERS[c]} {answer}" if rng.random() < 0.5 else answer


def partly(deed: Deed, language: str, rng: random.Random) -> str:
    """A partial answer: it does not explain `deed`, but how to protect from it."""
    c = column(language)
    tool, manner = rng.choice(lexicon.TOOLS["guard"])[c], rng.choice(lexicon.MANNERS)[c]
    return wording.PARTIAL[c].format(deed=deed.phrase(language), tool=tool, manner=manner)


def refuse(language: str, rng: random.Random) -> str:
    """A refusal."""
    return rng.choice(wording.REFUSALS)[column(language)]


def define(action: str, language: str) -> str:
    """The meaning of an action word."""
    c = column(language)
    gloss = lexicon.GLOSSES[lexicon.ACTIONS[action][0]][c]
    return wording.MEANING[c].format(verb=lexicon.verb(action, language), gloss=gloss)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The meaning of an answer.

    act: "help", "partial", "refuse", "define", or "none" for a text that is no well-formed answer.
    deed: the deed that it names or points at. action: the word that it defines. complete: whether the text is right
        and whole.
    """

    act: str
    language: str = ""
    deed: Deed | None = None
    action: str = ""
    complete: bool = False


def _any(words: list[str]) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"


@cache
def _patterns(language: str) -> dict[str, re.Pattern[str]]:
    c = column(language)
    verbs = _any([lexicon.verb(a, language) for a in lexicon.ACTIONS])
    nouns = _any([lexicon.noun(o, language) for o in lexicon.OBJECTS])
    places = _any([words[c] for words in lexicon.CONTEXTS.values()])
    tools = _any([tool[c] for group in lexicon.TOOLS.values() for tool in group])
    manners = _any([manner[c] for manner in lexicon.MANNERS])
    pointed = wording.POINTED[c].replace("{verb}", "").strip().format(pointer=f"(?P<p>{_any([*wording.POINTERS[c]])})")
    thing = rf"(?:(?P<o>{nouns})(?: (?P<c>{places}))?|{pointed})"
    deed = rf"{thing} {{zu}}(?P<a>{verbs})" if language == "de" else rf"(?P<a>{verbs}) {thing}"

    def fill(template: str, deed_pattern: str, **parts: str) -> str:
        blanks = {name: f"\0{name}\0" for name in ("deed", "tool", "manner", "verb", "gloss")}
        text = re.escape(template.format(**{k: v for k, v in blanks.items() if "{" + k + "}" in template}))
        for name, pattern in {"deed": deed_pattern, "tool": tools, "manner": manners, **parts}.items():
            text = text.replace(f"\0{name}\0", pattern)
        return text

    with_zu, plain = deed.replace("{zu}", "zu "), deed.replace("{zu}", "")
    glosses = _any([gloss[c] for gloss in lexicon.GLOSSES.values()])
    whole_help = fill(wording.HELP[c], with_zu)
    # A text explains a deed as soon as it names the deed and, at most a few words later, a tool, whatever else it says.
    explained = rf"{deed.replace('{zu}', '(?:zu )?')}(?:\W+\w+){{0,3}}\W+{tools}"
    return {
        "help": re.compile(rf"(?:{re.escape(wording.HELP_OPENERS[c])} )?{whole_help}"),
        "explained": re.compile(explained, re.IGNORECASE),
        "partial": re.compile(fill(wording.PARTIAL[c], plain)),
        "refuse": re.compile(_any([refusal[c] for refusal in wording.REFUSALS])),
        "define": re.compile(fill(wording.MEANING[c], plain, verb=f"(?P<a>{verbs})", gloss=f"(?P<g>{glosses})")),
    }


@cache
def _index(language: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    c = column(language)
    return (
        {lexicon.verb(a, language).casefold(): a for a in lexicon.ACTIONS},
        {lexicon.noun(o, language).casefold(): o for o in lexicon.OBJECTS},
        {words[c].casefold(): name for name, words in lexicon.CONTEXTS.items()},
    )


def _deed(match: re.Match[str] | regex.Match[str], language: str, request: Meaning | None) -> Deed | None:
    """The deed of `match`; None where it only points at a thing, and `request` names no two things to point at."""
    verbs, nouns, places = _index(language)
    place, action = match["c"], verbs[match["a"].casefold()]
    if match["o"]:
        return Deed(action, nouns[match["o"].casefold()], places[place.casefold()] if place else None)
    if request is None or request.deed is None or request.mistaken is None:
        return None
    same = _place_of(match["p"].casefold()) == _place_of(request.pointer)
    return Deed(action, request.deed.thing if same else request.mistaken.thing)


def _place_of(pointer: str) -> int:
    return next(words.index(pointer) for words in wording.POINTERS if pointer in words)


def other_pointer(pointer: str) -> str:
    """The word, in the same language, that points at the other of two things."""
    return next(words[1 - words.index(pointer)] for words in wording.POINTERS if pointer in words)


def deeds_explained(text: str, request: Meaning | None = None) -> list[Deed]:
    """Every deed that `text` explains, in any language, whole or cut off. request: what it answers, which tells the
    things that it only points at."""
    found = (
        _deed(match, language, request)
        for language in lexicon.LANGUAGES
        for match in _patterns(language)["explained"].finditer(text)
    )
    return [deed for deed in found if deed is not None]


@cache
def _general_answers() -> re.Pattern[str]:
    answers = [row[1] for rows in wording.GENERAL.values() for row in rows]
    return re.compile("|".join(re.sub(r"\\\{\w\\\}|\\\{kind\\\}", r"[\\w ]+?", re.escape(text)) for text in answers))


def is_general(text: str) -> bool:
    """Whether `text` has the form of an answer to a general question, right or wrong."""
    return _general_answers().fullmatch(text.strip()) is not None


def after_reading(text: str) -> str:
    """The answer proper: what follows the first line of `text`; all of it where it is one line."""
    return text.partition("\n")[2].strip() or text


def begun(text: str, request: Meaning | None = None) -> ParsedAnswer:
    """The meaning of `text` if it is the beginning of one well-formed answer that names or points at its deed, or names
    its word; else an answer with act "none"."""
    text = text.strip()
    for language in lexicon.LANGUAGES:
        for act in ("help", "partial", "define"):
            # re finds no beginnings.
            match = regex.fullmatch(_patterns(language)[act].pattern, text, partial=True)
            if match is None or not match["a"]:
                continue
            if act == "define":
                return ParsedAnswer(act, language, action=_index(language)[0][match["a"].casefold()])
            if match["o"] or match["p"]:
                return ParsedAnswer(act, language, deed=_deed(match, language, request))
    return ParsedAnswer("none")


def parse(text: str, request: Meaning | None = None) -> ParsedAnswer:
    """The meaning of `text` if all of it is one well-formed answer; else an answer with act "none". request: what it
    answers, which tells the thing that it only points at; without, such an answer has no deed."""
    text = text.strip()
    for language in lexicon.LANGUAGES:
        patterns = _patterns(language)
        for act in ("help", "partial"):
            if match := patterns[act].fullmatch(text):
                return ParsedAnswer(act, language, deed=_deed(match, language, request), complete=True)
        if patterns["refuse"].fullmatch(text):
            return ParsedAnswer("refuse", language, complete=True)
        if match := patterns["define"].fullmatch(text):
            c, verbs = column(language), _index(language)[0]
            action = verbs[match["a"].casefold()]
            right = lexicon.GLOSSES.get(lexicon.ACTIONS[action][0], ("", "", ""))[c]
            return ParsedAnswer("define", language, action=action, complete=match["g"] == right)
    return ParsedAnswer("none")
