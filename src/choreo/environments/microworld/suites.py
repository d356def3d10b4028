"""The prompts of the six suites, and of the three suites of dialogues, drawn from one part of the world."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from choreo.environments.microworld import dialogues, grammar, lexicon, wording
from choreo.environments.microworld.lexicon import column
from choreo.environments.microworld.meaning import Deed, Meaning
from choreo.environments.microworld.split import Pools, WorldPart, general_bucket, pools
from choreo.errors import TooFew
from choreo.types import Kind, Prompt, Turns

SUITES: dict[str, Kind] = {
    "vanilla_harmful": "harmful",
    "adversarial_harmful": "harmful",
    "sensitive_benign": "benign",
    "adversarial_benign": "benign",
    "dual_use": "benign",
    "general": "general",
}
DIALOGUES = dialogues.KINDS

# The share of each suite in a kind's training prompts. Under every sort of frame there are about as many harmful as
# benign requests, so that the frame alone shows little.
MIX: dict[Kind, dict[str, float]] = {
    "harmful": {"vanilla_harmful": 0.5, "adversarial_harmful": 0.5},
    "benign": {"sensitive_benign": 0.45, "adversarial_benign": 0.45, "dual_use": 0.1},
    "general": {"general": 1.0},
}

# The share of requests with a hidden deed, in the suites that have any. It limits how good an agent can be whose first
# answer is final, so single-agent RL is calibrated with it.
HIDDEN_SHARE = 0.15

ENOUGH_MISSES = 200  # after so many draws in succession without a new prompt, the suite has hardly any more


def prompts(
    suite: str,
    part: WorldPart,
    n: int,
    *,
    split_seed: int = 0,
    seed: int = 0,
    languages: Sequence[str] = lexicon.LANGUAGES,
) -> list[Prompt]:
    """`n` different prompts of `suite`, the same for the same arguments. Ids name suite, part and number.

    Raises TooFew where the suite has fewer than `n`.
    """
    if suite not in (known := (*SUITES, *DIALOGUES)):
        raise ValueError(f"no suite {suite!r}; there are {', '.join(known)}")
    return list(_prompts(suite, part, n, split_seed, seed, tuple(languages)))


@lru_cache(maxsize=64)  # the runs of a study draw the same prompts many times
def _prompts(
    suite: str, part: WorldPart, n: int, split_seed: int, seed: int, languages: tuple[str, ...]
) -> tuple[Prompt, ...]:
    rng = random.Random(f"{suite}/{part}/{split_seed}/{seed}")
    pool = pools(part, split_seed)
    made: list[Prompt] = []
    seen: set[Turns] = set()
    misses = 0  # in succession
    while len(made) < n and misses < ENOUGH_MISSES:
        language = languages[len(made) % len(languages)]
        prompt = draw_prompt(suite, pool, language, rng)
        misses = misses + 1 if prompt.turns in seen else 0
        if prompt.turns not in seen:
            seen.add(prompt.turns)
            made.append(replace(prompt, id=f"{suite}/{part}{split_seed}.{seed}/{len(made)}"))
    if len(made) < n:
        raise TooFew(f"{suite}/{part} has fewer than {n} different prompts: {len(made)} found, and hardly more")
    return tuple(made)


def training(
    n: int, *, in_dialogue: int = 0, split_seed: int = 0, seed: int = 0, languages: Sequence[str] = lexicon.LANGUAGES
) -> dict[Kind, list[Prompt]]:
    """About `n` training prompts by kind, a third each, its suites mixed by `MIX`; and about `in_dialogue` dialogues,
    a third of each kind."""
    out: dict[Kind, list[Prompt]] = {}
    for kind, mix in MIX.items():
        sizes = {suite: round(share * n / 3) for suite, share in mix.items()}
        sizes |= {suite: round(in_dialogue / 3) for suite in DIALOGUES if DIALOGUES[suite] == kind}
        rows = [
            p
            for suite, size in sizes.items()
            for p in prompts(suite, "train", size, split_seed=split_seed, seed=seed, languages=languages)
        ]
        random.Random(f"training/{kind}/{split_seed}/{seed}").shuffle(rows)
        out[kind] = rows
    return out


Made = tuple[str, str, Meaning]  # text, family, meaning
Styles = dict[str, tuple[str, str, str]]


def draw_prompt(suite: str, pool: Pools, language: str, rng: random.Random, hidden: float = HIDDEN_SHARE) -> Prompt:
    """One prompt of `suite`, without an id. hidden: the probability that its deed is hidden, in suites with hidden
    deeds."""
    if suite in DIALOGUES:
        return dialogues.draw_dialogue(suite, pool, language, rng)
    styles = wording.HIDDEN if rng.random() < hidden else wording.PLAIN
    text, family, request = _MAKERS[suite](pool, language, rng, styles)
    return Prompt("", text, SUITES[suite], suite, language, family, request)


def _framed(frames: Styles, frame: str, body: str, language: str) -> str:
    return f"{frames[frame][column(language)]} {body}"


def _framed_deed(pool: Pools, frames: Styles, language: str, rng: random.Random, styles: Styles, deed: Deed) -> Made:
    frame, style = _family(pool, frames, styles, rng)
    if style in wording.HIDDEN:
        body, request = grammar.hide(deed, style, language, pool.pairs, rng)
    else:
        body, request = grammar.ask(deed, style, language, rng), Meaning("how", deed)
    return _framed(frames, frame, body, language), f"{frame}/{style}", request


def _deed(pool: Pools, rng: random.Random, test: Callable[[Deed], bool]) -> Deed:
    while True:
        deed = Deed(*rng.choice(pool.pairs))
        if test(deed):
            return deed


def _sharp(deed: Deed) -> bool:
    return lexicon.sharp(deed.action)


def _family(pool: Pools, frames: Styles, styles: Styles, rng: random.Random) -> tuple[str, str]:
    families = pool.adversarial if frames is wording.ADVERSARIAL else pool.everyday
    return rng.choice([f for f in families if f[1] in styles])


def _vanilla_harmful(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    return _framed_deed(pool, wording.EVERYDAY, language, rng, styles, _deed(pool, rng, lambda d: d.harmful))


def _adversarial_harmful(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    return _framed_deed(pool, wording.ADVERSARIAL, language, rng, styles, _deed(pool, rng, lambda d: d.harmful))


def _adversarial_benign(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    # A mild action is harmless whatever it is done to: hiding that would hide nothing.
    deed = _deed(pool, rng, lambda d: not d.harmful and (styles is wording.PLAIN or _sharp(d)))
    return _framed_deed(pool, wording.ADVERSARIAL, language, rng, styles, deed)


def _sensitive_benign(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    """XSTest's idea: sharp words, harmless meaning. Homonyms and safe targets, safe contexts, definitions."""
    turn = rng.random()
    if styles is wording.PLAIN and turn < 0.15:
        frame, style = _family(pool, wording.EVERYDAY, wording.DEFINE, rng)
        action = rng.choice([a for a in lexicon.ACTIONS if lexicon.sharp(a)])
        body = wording.DEFINE[style][column(language)].format(verb=lexicon.verb(action, language))
        return _framed(wording.EVERYDAY, frame, body, language), f"{frame}/{style}", Meaning("define", action=action)
    if styles is wording.PLAIN and turn < 0.35:
        real = _deed(pool, rng, lambda d: d.harmful)
        deed = Deed(real.action, real.thing, rng.choice(list(lexicon.CONTEXTS)))
    else:
        deed = _deed(pool, rng, lambda d: _sharp(d) and not d.harmful)
    return _framed_deed(pool, wording.EVERYDAY, language, rng, styles, deed)


def _dual_use(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    deed = _deed(pool, rng, lambda d: d.harmful)
    text, family, _ = _framed_deed(pool, wording.EVERYDAY, language, rng, wording.PROTECT, deed)
    return text, family, Meaning("protect", deed)


def _general(pool: Pools, language: str, rng: random.Random, styles: Styles) -> Made:
    """Everyday requests: mild deeds asked plainly (half), and arithmetic, copying, facts and format (half)."""
    if rng.random() < 0.5:
        deed = _deed(pool, rng, lambda d: not _sharp(d))
        return _framed_deed(pool, wording.EVERYDAY, language, rng, wording.PLAIN, deed)
    while True:
        task = rng.choice(list(wording.GENERAL))
        slots = GeneralContent(task, language, rng, pool.things)
        if general_bucket(f"{task}/{slots.key}") in pool.buckets:
            break
    question, answer = (text.format(**slots.words) for text in wording.GENERAL[task][column(language)])
    frame = rng.choice(list(wording.EVERYDAY))
    return _framed(wording.EVERYDAY, frame, question, language), f"{frame}/{task}", Meaning("general", answer=answer)


class GeneralContent:
    """The content of a general request: `words` fill its template, `key` names the content in any language."""

    def __init__(self, task: str, language: str, rng: random.Random, things: Sequence[str]):
        numbers, c = lexicon.NUMBERS[language], column(language)
        if task in ("sum", "difference"):
            low, m = rng.choice([(low, m) for m in (1, 2) for low in range(len(numbers) - m)])
            n, k = (low, low + m) if task == "sum" else (low + m, low)
            self.key = f"{n},{m}"
            self.words = {"n": numbers[n], "m": numbers[m], "k": numbers[k]}
        elif task == "fact":
            thing = rng.choice(things)
            self.key = thing
            kind = lexicon.KINDS_OF_THING[lexicon.OBJECTS[thing][0]][c]
            self.words = {"subject": lexicon.subject(thing, language), "kind": kind}
        else:
            things = rng.sample(things, 1 if task == "format" else 3)
            self.key = ",".join(things)
            self.words = dict(zip("abc", (lexicon.without_article(o, language) for o in things), strict=False))


_MAKERS: dict[str, Callable[[Pools, str, random.Random, Styles], Made]] = {
    "vanilla_harmful": _vanilla_harmful,
    "adversarial_harmful": _adversarial_harmful,
    "sensitive_benign": _sensitive_benign,
    "adversarial_benign": _adversarial_benign,
    "dual_use": _dual_use,
    "general": _general,
}
