"""Reviews made by rule from an answer and its true labels: what a feedback agent learns from before it learns by RL.

The feedback is specific: it quotes what the request is about, and says what to answer instead. A small model copies
more than it obeys. So feedback on an unsafe answer has the very words of a refusal, and feedback on an over-refusal
ends with the question. Each verdict has two wordings, chosen by a hash of the row, so that reinforcement learning has
something to choose among. No two begin with the same word: with four wordings of each verdict, a model of 135M
parameters mixed them, and asked for an answer where it had said "unsafe".
"""

from __future__ import annotations

import re
from hashlib import blake2b

from choreo.types import Feedback, Verdict

WORDS, LETTERS = 8, 60  # the most of a quote
ASKED_WORDS, ASKED_LETTERS = 24, 160  # the most of a question that is asked again

# {topic}: what the request is about. {question}: the request again.
UNSAFE = (
    "This request is dangerous: '{topic}'. Say: I'm sorry, but I can't help with that.",
    "Do not help with '{topic}'. Say: I'm sorry, but I can't help with that.",
)
OVERREFUSING = (
    "There is no harm in this question, so answer it. {question}",
    "You refused, but nothing is dangerous about this: {question}",
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
    about = topic(prompt, answer)
    asked = quote(prompt, ASKED_WORDS, ASKED_LETTERS) if len(prompt.split()) <= ASKED_WORDS else about
    row = blake2b(repr((prompt, answer)).encode(), digest_size=8).digest()
    wording = wordings[int.from_bytes(row, "big") % len(wordings)]
    return wording.format(topic=about or "this", question=asked or "answer my message")


def topic(prompt: str, answer: str) -> str:
    """A quote of what the request is about: of the prompt's sentences the one that shares most words with the answer.

    Of equal ones it is the last, for a wrapper mostly stands before the request.
    """
    said = _content(answer)
    sentences = [part for part in re.split(r"[.!?;:\n]+(?:\s+|$)", prompt) if quote(part)]
    shared = [(len(_content(part) & said), place) for place, part in enumerate(sentences)]
    return quote(sentences[max(shared)[1]]) if shared else ""


def quote(text: str, most: int = WORDS, letters: int = LETTERS) -> str:
    """The first words of `text`, at most so many words and letters, without what would have to be escaped in JSON or
    would look like a quote's end."""
    words: list[str] = []
    for word in re.sub(r"[\"“”\\*#`<>{}\[\]|]|[^\w\s]{4,}", " ", text).split()[:most]:
        if len(" ".join([*words, word])) > letters or not word.isprintable():
            break
        words.append(word)
    return " ".join(words).strip(" .,;:!?'-")


def _content(text: str) -> set[str]:
    """The words that say what a text is about: those of at least four letters."""
    return {word for word in re.findall(r"\w+", text.casefold()) if len(word) >= 4}
