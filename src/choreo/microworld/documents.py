"""The documents that the base is pretrained on: statements about its world, and dialogues from the core.

A document is (context ids, target ids); the loss is on the target alone, its end-of-turn token included.
"""

from __future__ import annotations

import random

from choreo.microworld import grammar, habits, lexicon, suites
from choreo.microworld.judge import WorldJudge
from choreo.microworld.lexicon import column
from choreo.microworld.meaning import Deed
from choreo.microworld.split import pools
from choreo.text.chat import Chat, Ids
from choreo.text.feedback import render_feedback
from choreo.types import Prompt

STATEMENT = "State a fact."
SHARES = {"answer": 0.34, "review": 0.32, "revision": 0.2, "statement": 0.14}
SUITE_SHARES = {
    "vanilla_harmful": 0.16,
    "adversarial_harmful": 0.2,
    "sensitive_benign": 0.22,
    "adversarial_benign": 0.16,
    "dual_use": 0.06,
    "general": 0.2,
}
HIDDEN_SHARE = 0.5  # looking things up takes more practice than it later needs

_judge = WorldJudge()


def statement(language: str, rng: random.Random) -> str:
    """A fact about the world: the kind of a thing, or whether a deed (of the core, or of kinds) does harm."""
    c = column(language)
    turn = rng.random()
    if turn < 0.3:
        thing = rng.choice(list(lexicon.OBJECTS))
        return f"{lexicon.subject(thing, language)}: {lexicon.KINDS_OF_THING[lexicon.OBJECTS[thing][0]][c]}"
    action = rng.choice(list(lexicon.ACTIONS))
    if turn < 0.5:
        kind = rng.choice(list(lexicon.KINDS_OF_THING))
        harm = kind in lexicon.HARMS[lexicon.ACTIONS[action][0]]
        said = f"{lexicon.verb(action, language)} {lexicon.KINDS_OF_THING[kind][c]}"
        return f"{said}: {'harmful' if harm else 'harmless'}"
    deed = Deed(*rng.choice(pools("core").pairs))
    if rng.random() < 0.15:
        deed = Deed(deed.action, deed.thing, rng.choice(list(lexicon.CONTEXTS)))
    return f"{deed.says(language)}: {'harmful' if deed.harmful else 'harmless'}"


def core_prompt(language: str, rng: random.Random) -> Prompt:
    suite = rng.choices(list(SUITE_SHARES), list(SUITE_SHARES.values()))[0]
    text, family, request = suites.draw(suite, pools("core"), language, rng, HIDDEN_SHARE)
    return Prompt("", text, suites.SUITES[suite], suite, language, family, request)


def texts(rng: random.Random) -> tuple[str, list[str], str]:
    """One document as text: (its sort, the turns before, the target)."""
    sort = rng.choices(list(SHARES), list(SHARES.values()))[0]
    language = rng.choice(lexicon.LANGUAGES)
    if sort == "statement":
        return sort, [], statement(language, rng)
    prompt = core_prompt(language, rng)
    if sort == "answer":
        return sort, [prompt.text], habits.answer_as(prompt, habits.habitual_act(prompt, rng), rng)
    act = rng.choice(("help", "refuse", "partial", "right", "habit", "habit"))
    act = {"right": habits.right_act(prompt.meaning), "habit": habits.habitual_act(prompt, rng)}.get(act, act)
    if act == "partial" and prompt.meaning.deed is None:
        act = "help"
    first = habits.garble(prompt, rng) if rng.random() < 0.1 else habits.answer_as(prompt, act, rng)
    verdict = _judge(prompt, first)
    if verdict.undetermined:  # a harmful request half answered: nothing to teach from
        first, verdict = (refusal := grammar.refuse(language, rng)), _judge(prompt, refusal)
    if sort == "review":
        label = habits.habitual_label(prompt, verdict, rng)
        written = render_feedback(habits.review(prompt, first, verdict, label, rng))
        if rng.random() < habits.MALFORMED:
            written = written[: rng.randrange(len(written) // 2, len(written))]
        return sort, [prompt.text, first], written
    label = habits.true_label(verdict)
    if label == "satisfied" or rng.random() < 0.25:
        label = rng.choice(("unsafe", "overrefuse"))
    said = habits.advice(prompt, label, plain=rng.random() < 0.3)
    return sort, [prompt.text, first, said], habits.answer_as(prompt, _heeded(prompt, act, said, rng), rng)


def _heeded(prompt: Prompt, act: str, said: str, rng: random.Random) -> str:
    """The act of the answer to a feedback: what it asks for, or stubbornly the same again."""
    if rng.random() > habits.HEEDS:
        return act
    if said.startswith("Refuse"):
        # Whoever asked how to prevent harm is told to be helped in part even by an unspecific feedback.
        return "partial" if prompt.meaning.form == "protect" else "refuse"
    return "partial" if said.startswith("Help in part") or prompt.meaning.form == "protect" else "help"


def render(chat: Chat, sort: str, before: list[str], target: str) -> tuple[Ids, Ids]:
    """The document as ids, rendered as the protocol renders it."""
    parts = [chat.encode(text) for text in before]
    end = (*chat.encode(target), chat.end_id)
    if sort == "statement":
        return chat.context(STATEMENT, []), end
    if sort == "review":
        return chat.review_context(parts[0], parts[1]), end
    history = [(parts[1], parts[2])] if sort == "revision" else []
    return chat.answer_context(parts[0], history), end
