"""The documents that a base of the microworld is pretrained on.

- statements: facts about the world
- practice: general questions with any content
- readings: a request from the core, alone or with an answer, and in plain words what it asks for
- dialogues from the core: answers, answers after a reading, reviews and revisions

A document is (context ids, target ids). The loss is on the target alone, its end-of-turn token included.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping

from choreo.environments.microworld import grammar, habits, lexicon, suites, wording
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.lexicon import column
from choreo.environments.microworld.meaning import Deed
from choreo.environments.microworld.split import Pools, general_bucket, pools
from choreo.environments.microworld.writers import Writer, Writers
from choreo.models.chat import Chat, Ids
from choreo.text.feedback import render_feedback
from choreo.types import Prompt

STATEMENT = "State a fact."  # the system prompt of all documents but the dialogues of agents
LIST_PRACTICE = {"copy": 0.5, "reverse": 0.5}
PRACTICE = {"copy": 0.2, "reverse": 0.2, "sum": 0.2, "difference": 0.2, "fact": 0.1, "define": 0.1}
FACTS = 6  # in a statement document
SUITE_SHARES = {
    "vanilla_harmful": 0.11,
    "adversarial_harmful": 0.15,
    "sensitive_benign": 0.23,
    "adversarial_benign": 0.13,
    "dual_use": 0.06,
    "general": 0.32,
}
HIDDEN_SHARE = 0.55  # of requests: more than in the suites, because finding a hidden deed takes much practice

_judge = WorldJudge()


def statements(pool: Pools, language: str, rng: random.Random) -> str:
    """A few facts about the world: the kinds of things, and whether deeds (of the core, or of kinds) do harm.

    Several in one document, because with one fact in each the base takes many times as long to learn them.
    """
    fact = rng.choice((_kind_of_thing, _harm_of_kind, _harm_of_deed))
    return " ".join(f"{fact(pool, language, rng)}." for _ in range(FACTS))


def _kind_of_thing(pool: Pools, language: str, rng: random.Random) -> str:
    thing = rng.choice(pool.things)
    return f"{lexicon.subject(thing, language)}: {lexicon.KINDS_OF_THING[lexicon.OBJECTS[thing][0]][column(language)]}"


def _harm_of_kind(pool: Pools, language: str, rng: random.Random) -> str:
    action, kind = rng.choice(list(lexicon.ACTIONS)), rng.choice(list(lexicon.KINDS_OF_THING))
    harm = kind in lexicon.HARMS[lexicon.ACTIONS[action][0]]
    return f"{lexicon.verb(action, language)} {lexicon.KINDS_OF_THING[kind][column(language)]}: {_worth(harm)}"


def _harm_of_deed(pool: Pools, language: str, rng: random.Random) -> str:
    action, thing = rng.choice(pool.pairs)
    deed = Deed(action, thing, rng.choice(list(lexicon.CONTEXTS)) if rng.random() < 0.4 else None)
    return f"{deed.phrase(language)}: {_worth(deed.harmful)}"


def _worth(harm: bool) -> str:
    return "harmful" if harm else "harmless"


def practice(pool: Pools, language: str, rng: random.Random, shares: Mapping[str, float] = PRACTICE) -> tuple[str, str]:
    """A question and its answer: a general question with any content, or one for the meaning of a word.

    shares: of the tasks.

    Lists of up to 6 words, to be repeated or reversed, teach the base to look things up in its context; without them it
    never learns to copy or to find a hidden deed. Sums must be asked and not only stated, or the base cannot answer
    them. Only content of the core gets a frame as prompts have.
    """
    task = rng.choices(list(shares), list(shares.values()))[0]
    if task == "define":
        action = rng.choice([a for a in lexicon.ACTIONS if lexicon.sharp(a)])
        wanted = rng.choice(list(wording.DEFINE.values()))[column(language)]
        return wanted.format(verb=lexicon.verb(action, language)), grammar.define(action, language)
    question, answer = wording.GENERAL[task][column(language)]
    if task in ("copy", "reverse"):
        # Random words, so that they name no deed. One is a verb, so that the question is no prompt of a suite.
        listed = [lexicon.verb(a, language) for a in rng.sample(list(lexicon.ACTIONS), 3)]
        listed += [lexicon.without_article(o, language) for o in rng.sample(list(lexicon.OBJECTS), 2)]
        listed.append(rng.choice(list(lexicon.CONTEXTS.values()))[column(language)].split(" ")[-1])
        chosen = [listed[0], *rng.sample(listed[1:], rng.randint(2, 5))]
        rng.shuffle(chosen)
        a, b, *rest = chosen
        last = rest if task == "copy" else rest[::-1]
        asked, answered = {"a": a, "b": b, "c": " ".join(rest)}, {"a": a, "b": b, "c": " ".join(last)}
        core = True
    else:
        slots = suites.GeneralContent(task, language, rng, pool.things)
        asked = answered = slots.words
        core = general_bucket(f"{task}/{slots.key}") in pool.buckets
    frame = rng.choice(list(wording.EVERYDAY.values()))[column(language)]
    question = question.format(**asked)
    return f"{frame} {question}" if core and rng.random() < 0.5 else question, answer.format(**answered)


def core_prompt(pool: Pools, language: str, rng: random.Random) -> Prompt:
    """A random prompt of `pool`, of a suite drawn by SUITE_SHARES."""
    suite = rng.choices(list(SUITE_SHARES), list(SUITE_SHARES.values()))[0]
    return suites.draw_prompt(suite, pool, language, rng, HIDDEN_SHARE)


def talk(pool: Pools, writer: Writer, language: str, rng: random.Random, pointing: bool) -> list[str]:
    """One to three requests and the writer's answers to them, in turn. They show whose answer is to come."""
    turns: list[str] = []
    for _ in range(rng.randint(1, 3)):
        asked = core_prompt(pool, language, rng)
        turns += [asked.text, habits.answer_as(asked, writer(asked, rng), rng, pointing=pointing)]
    return turns


def texts(rng: random.Random, writers: Writers, pool: Pools | None = None) -> tuple[str, list[str], str]:
    """One document as text: (its sort, a key of `writers.shares`; the earlier turns; the target).

    pool: what its writer knows, the whole core by default. Words that are only repeated may name any thing.
    """
    pool = pool or pools("core")
    sort = rng.choices(list(writers.shares), list(writers.shares.values()))[0]
    language = rng.choice(lexicon.LANGUAGES)
    if sort == "statement":
        return sort, [], statements(pool, language, rng)
    if sort in ("practice", "list"):
        question, answer = practice(pool, language, rng, PRACTICE if sort == "practice" else LIST_PRACTICE)
        return sort, [question], answer
    prompt = core_prompt(pool, language, rng)
    if sort == "reading" and prompt.meaning.form != "general" and rng.random() < 0.5:
        return sort, [prompt.text], habits.spelled_out(prompt)
    writer = writers.some(rng)

    def answered(act: str) -> str:
        return habits.answer_as(prompt, act, rng, pointing=writers.pointing)

    if sort == "considered":
        # It names a hidden thing, as the line before it does.
        return sort, [prompt.text], habits.considered(prompt, habits.answer_as(prompt, writer(prompt, rng), rng))
    if sort == "answer":
        alone = writers.talkless == 1 or rng.random() < writers.talkless
        before = [] if alone else talk(pool, writer, language, rng, writers.pointing)
        return sort, [*before, prompt.text], answered(writer(prompt, rng))
    act = rng.choice(("help", "refuse", "partial", "right", "habit", "habit"))
    act = {"right": habits.right_act(prompt.meaning), "habit": writer(prompt, rng)}.get(act, act)
    if act == "partial" and prompt.meaning.deed is None:
        act = "help"
    first = habits.garble(prompt, rng, pool) if rng.random() < 0.1 else answered(act)
    if act == "help" and prompt.meaning.mistaken and rng.random() < 0.5:
        # The answer may be about another deed than the prompt, so that reviews must look at the prompt and not at it.
        pointer = grammar.other_pointer(prompt.meaning.pointer) if writers.pointing else ""
        first = grammar.help_with(habits.mistake(prompt.meaning, rng, pool), language, rng, pointer)
    verdict = _judge(prompt, first)
    if verdict.undetermined:  # a harmful request with half an answer, from which nothing can be taught
        first, verdict = (refusal := grammar.refuse(language, rng)), _judge(prompt, refusal)
    if sort == "reading":
        return sort, [prompt.text, first], habits.reasoning(prompt, first, verdict)
    if sort == "review":
        label = habits.habitual_label(prompt, verdict, rng)
        written = render_feedback(habits.written_review(prompt, first, verdict, label, rng))
        if rng.random() < habits.MALFORMED:
            written = written[: rng.randrange(len(written) // 2, len(written))]
        return sort, [prompt.text, first], written
    label = habits.true_label(verdict)
    if label == "satisfied" or rng.random() < 0.25:
        label = rng.choice(("unsafe", "overrefuse"))
    feedback = habits.advice(prompt, habits.advised_label(prompt, verdict, label), plain=rng.random() < 0.3)
    act = _revised_act(prompt, act, feedback, rng)
    return sort, [prompt.text, first, feedback], answered(act)


def _revised_act(prompt: Prompt, act: str, feedback: str, rng: random.Random) -> str:
    """The act of the revised answer: what `feedback` asks for, or now and then the same act again."""
    if rng.random() > habits.FOLLOWS_FEEDBACK:
        return act
    if feedback.startswith("Refuse"):
        # A request for how to prevent harm gets help in part, even after feedback that does not say so.
        return "partial" if prompt.meaning.form == "protect" else "refuse"
    return "partial" if feedback.startswith("Help in part") or prompt.meaning.form == "protect" else "help"


def render(chat: Chat, sort: str, before: list[str], target: str) -> tuple[Ids, Ids]:
    """The document as ids (context, target), in the same format as the turns of a game."""
    parts = [chat.encode(text) for text in before]
    end = (*chat.encode(target), chat.end_id)
    if sort == "considered":
        return chat.context(habits.READ_FIRST, [("user", parts[0])]), end
    if sort in ("statement", "practice", "list", "reading"):
        return chat.context(STATEMENT, [("user", text) for text in parts]), end
    if sort == "review":
        return chat.review_context(parts[0], parts[1]), end
    if sort == "revision":
        return chat.answer_context(parts[0], [(parts[1], parts[2])]), end
    roles = itertools.cycle(("user", "assistant"))
    return chat.answer_context(parts[-1], earlier=list(zip(roles, parts[:-1], strict=False))), end
