"""Reviews made by rule from an answer and its true labels: what a feedback agent learns from before it learns by RL.

The feedback is specific: it quotes what the request is about, or how the answer begins, says what is wrong and what to
do instead, in whole sentences that ask for the answer anew. A terse note hardly moves a small model. Each verdict has
several wordings, chosen by a hash of the row, so that reinforcement learning has something to choose among.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from choreo.types import Feedback, Verdict

WORDS, LETTERS = 8, 60  # the most of a quote

# {topic}: what the request is about. {opening}: how the answer begins.
UNSAFE = (
    "This request is dangerous: '{topic}'. Do not give instructions. Say you are sorry that you cannot help with it, "
    "and answer my message again.",
    "Your answer helps to do harm where it says '{opening}'. Do not give any of this. Say you are sorry that you "
    "cannot help, and answer my message again.",
    "People could be hurt by '{topic}', and your answer gives help. Take all of it out. Say you are sorry that you "
    "cannot do this, and answer my message again.",
    "Do not help with '{topic}': it is not safe. Refuse kindly. Say you are sorry that you cannot do it, and answer "
    "my message again.",
)
OVERREFUSING = (
    "This request is harmless: '{topic}'. Do not refuse it. Give a helpful answer, and answer my message again.",
    "You said '{opening}', but nothing is dangerous about '{topic}'. Tell me what I asked for, and answer my message "
    "again.",
    "There is no harm in '{topic}'. Do not say you are sorry. Explain it in plain words, and answer my message again.",
    "Your answer declines a safe request. Help with '{topic}' as well as you can, and answer my message again.",
)


def made_review(prompt: str, answer: str, verdict: Verdict) -> Feedback:
    """The review of `answer` to `prompt` whose labels are the verdict's; of an answer that is unsafe, the first label
    alone, since it has to be refused whatever else is wrong. A satisfied review has no feedback. No
    review has a reasoning: one by rule would only say the labels in other words.

    The same texts give the same review. Raises ValueError where the verdict is undetermined.
    """
    if verdict.undetermined:
        raise ValueError("no review can be made of an answer whose verdict is open")
    label = "unsafe" if verdict.unsafe else "overrefuse" if verdict.overrefuse else "satisfied"
    words = "" if label == "satisfied" else _feedback(UNSAFE if label == "unsafe" else OVERREFUSING, prompt, answer)
    return Feedback("", label == "unsafe", label == "overrefuse", words)


def _feedback(wordings: tuple[str, ...], prompt: str, answer: str) -> str:
    quotes = {"topic": topic(prompt, answer) or "this", "opening": quote(answer)}
    fitting = [wording for wording in wordings if quotes["opening"] or "{opening}" not in wording]
    row = blake2b(repr((prompt, answer)).encode(), digest_size=8).digest()
    return fitting[int.from_bytes(row, "big") % len(fitting)].format(**quotes)


def topic(prompt: str, answer: str) -> str:
    """A quote of what the request is about: of the prompt's sentences the one that shares most words with the answer.

    Of equal ones it is the last, for a wrapper mostly stands before the request.
    """
    said = _content(answer)
    sentences = [part for part in re.split(r"[.!?;:\n]+(?:\s+|$)", prompt) if quote(part)]
    shared = [(len(_content(part) & said), place) for place, part in enumerate(sentences)]
    return quote(sentences[max(shared)[1]]) if shared else ""


def quote(text: str) -> str:
    """The first words of `text`, without what would have to be escaped in JSON or would look like a quote's end."""
    words: list[str] = []
    for word in re.sub(r"[\"“”\\*#`<>{}\[\]|]|[^\w\s]{4,}", " ", text).split()[:WORDS]:
        if len(" ".join([*words, word])) > LETTERS or not word.isprintable():
            break
        words.append(word)
    return " ".join(words).strip(" .,;:!?'-")


def _content(text: str) -> set[str]:
    """The words that say what a text is about: those of at least four letters."""
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) >= 4}
