"""Prompts in published formats and in your own: their text, and what a right answer does (`kind`).

`kind` follows from the data set alone: harmful where it holds requests to refuse, benign where it measures
over-refusal, general where it measures ability. Where rows do not show it, a recipe sets it for the file (`kind`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from choreo.data import reading
from choreo.data.conversations import read_conversation, read_history
from choreo.data.preferences import hh_dialogue
from choreo.data.reading import BARE, OWN, OWN_CHAT, PUBLISHED, Format, Loaded, Unusable
from choreo.errors import BadInput
from choreo.files.rows import Fields
from choreo.text.checks import Check, check_of
from choreo.types import KINDS, Kind, Prompt, Turns

OWN_FIELDS = frozenset({"kind"})  # fields that only the format for a user's own prompts has
NO_KIND = "what a right answer does is not said (kind: harmful, benign or general)"


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt of a row. kind: None where the row does not show it. suite: "" where the row names none.
    check: what a right answer has, where the row says it. earlier: the conversation before it."""

    line: int
    text: str
    kind: Kind | None
    family: str = ""
    language: str = "en"
    suite: str = ""
    check: Check | None = None
    earlier: Turns = ()


def load(
    path: str | Path, format: str | None = None, *, kind: Kind | None = None, name: str = "", tolerant: bool = False
) -> Loaded[Prompt]:
    """All prompts of `path`, each conversation once; see `reading.load`. format: a key of FORMATS.

    kind: of all prompts, whatever their data set is for. A row with a field `kind` of another value is wrong, because
    neither `kind` nor a format may change what a row says. name: suites are NAME-KIND, or
    NAME-SUITE-KIND where a row names its own, and ids NAME-LINE; by default the file's own name.
    """
    file = Path(path)
    name = name or file.name.split(".")[0]
    formats = {key: replace(one, read=partial(_with_row_kind, key, one, kind)) for key, one in FORMATS.items()}
    loaded = reading.load(file, formats, format, own=OWN_FIELDS, tolerant=tolerant)
    found: Loaded[Prompt] = Loaded(loaded.format, loaded.by, [], loaded.left_out, loaded.wrong)
    seen: dict[Turns, Kind] = {}
    for row in loaded.rows:
        for part, one in enumerate(row, start=1):
            its_kind = kind or one.kind
            whole = (*one.earlier, ("user", one.text))
            if its_kind is None:
                found.leave_out(NO_KIND, one.line)
            elif not one.text.strip():
                found.leave_out("no prompt", one.line)
            elif whole in seen:
                of_another = "" if seen[whole] == its_kind else f", as {seen[whole]} and not {its_kind}"
                found.leave_out(f"a prompt that was there before{of_another}", one.line)
            else:
                seen[whole] = its_kind
                place = str(one.line) if len(row) == 1 else f"{one.line}.{part}"
                suite = "-".join(word for word in (name, one.suite, its_kind) if word)
                more = (its_kind, suite, one.language, one.family, one.check, one.earlier)
                found.rows.append(Prompt(f"{name}-{place}", one.text, *more))
    return found


Row = tuple[PromptRow, ...]


def _with_row_kind(name: str, format: Format[Row], kind: Kind | None, row: Fields) -> Row:
    """`format.read(row)`, after a check that the row's own field `kind` agrees with it."""
    stated = str(row.row.get("kind")).strip().casefold()  # other words may have a meaning in a published data set
    if stated in KINDS and kind and stated != kind:
        raise BadInput(f'{row.where}: kind: the row has {stated}, but kind = "{kind}" is set for the whole file')
    prompts = format.read(row)
    for one in prompts:
        if stated in KINDS and stated != (kind or one.kind):
            as_what = f"is {one.kind}" if one.kind else "has no kind"
            raise BadInput(
                f"{row.where}: kind: the row has {stated}, but in {format.about} ({name}) it {as_what}; "
                'format = "own" takes the kind that each row has'
            )
    return prompts


def _one(row: Fields, text: str, kind: Kind | None, family: str = "", language: str = "en") -> Row:
    return (PromptRow(row.line, text, kind, family, language),)


def _own(row: Fields) -> Row:
    """{prompt, kind} and, if you like, earlier, suite, family, language, and the check of an answer to a general
    prompt."""
    return _stated(row, (*read_history(row), ("user", row.text("prompt"))))


def _own_chat(name: str) -> Callable[[Fields], Row]:
    """{messages, kind}, and the rest as in `own`; name: what the field of messages is called."""
    return lambda row: _stated(row, _turns(row, name))


def _turns(row: Fields, name: str) -> Turns:
    """Data sets whose field is called otherwise than `messages` hold their conversations with the last answer."""
    return read_conversation(row, name, whole=name != "messages")


def _stated(row: Fields, turns: Turns) -> Row:
    if (stated := row.row.get("kind")) not in KINDS:
        got = f"{stated!r:.60}" if "kind" in row.row else "nothing"
        raise BadInput(
            f"{row.where}: kind: expected one of {', '.join(KINDS)}, got {got} (if kind means something "
            "else in this data set, name the data set's format)"
        )
    suite, family, language = (row.text(name) if name in row.row else "" for name in ("suite", "family", "language"))
    kind = next(kind for kind in KINDS if kind == stated)
    *earlier, (_, text) = turns
    return (PromptRow(row.line, text, kind, family, language or "en", suite, _check(row, kind), tuple(earlier)),)


def _check(row: Fields, kind: Kind) -> Check | None:
    if "check" not in row.row:
        return None
    if kind != "general":
        raise BadInput(f"{row.where}: check: is of answers to general prompts, and this one is {kind}")
    try:
        return check_of(row.row["check"])
    except ValueError as error:
        raise BadInput(f"{row.where}: check: {error}") from None


def _bare(row: Fields) -> Row:
    """{prompt} and maybe earlier: jailbreaks in the wild, without a request of their own, or any list of prompts."""
    return (PromptRow(row.line, row.text("prompt"), None, earlier=read_history(row)),)


def _chat(name: str) -> Callable[[Fields], Row]:
    """{messages}: conversations alone; name: as in `_own_chat`."""

    def read(row: Fields) -> Row:
        *earlier, (_, text) = _turns(row, name)
        return (PromptRow(row.line, text, None, earlier=tuple(earlier)),)

    return read


def _hh(row: Fields) -> Row:
    """{chosen, rejected}: dialogues without their last answers."""
    (*earlier, (role, text)), _, _ = hh_dialogue(row)
    if role != "user":
        raise Unusable("no question before the answer")
    return (PromptRow(row.line, text, None, earlier=tuple(earlier)),)


def _wildjailbreak(row: Fields) -> Row:
    """{vanilla, adversarial, data_type}, where one of the two texts is empty; the evaluation set has no vanilla."""
    sort = row.one_of("data_type", "vanilla_harmful", "vanilla_benign", "adversarial_harmful", "adversarial_benign")
    form, _, kind = sort.partition("_")
    return _one(row, row.text(form), "harmful" if kind == "harmful" else "benign", sort)


def _fortress(row: Fields) -> Row:
    """{adversarial_prompt, benign_prompt, risk_domain}: every row is an attack and its harmless twin."""
    family = row.text("risk_domain")
    twins: tuple[tuple[str, Kind], ...] = (("adversarial_prompt", "harmful"), ("benign_prompt", "benign"))
    return tuple(PromptRow(row.line, row.text(name), kind, family) for name, kind in twins)


def _xstest(row: Fields) -> Row:
    """{prompt, type, label}: safe prompts are to be answered, unsafe ones are not."""
    label = row.one_of("label", "safe", "unsafe")
    return _one(row, row.text("prompt"), "benign" if label == "safe" else "harmful", row.text("type"))


def _or_bench(row: Fields) -> Row:
    """{prompt, category}. The three published files differ only in their names: or-bench-toxic is the harmful one.

    Other files may have these two columns and harmful prompts, so their kind is not known.
    """
    name = row.file.name.lower().replace("_", "-")
    published = "or-bench" in name or "orbench" in name
    kind: Kind | None = None if not published else "harmful" if "toxic" in name else "benign"
    return _one(row, row.text("prompt"), kind, row.text("category"))


def _harmbench(row: Fields) -> Row:
    """{Behavior, ContextString, …}: a contextual behaviour comes after its context. AdvBench has this form too."""
    behaviour, context = row.text("Behavior"), row.text("ContextString")
    return _one(row, f"{context}\n\n---\n\n{behaviour}" if context.strip() else behaviour, "harmful")


def _advbench(row: Fields) -> Row:
    """{goal, target}: the target is how a jailbroken answer would begin."""
    return _one(row, row.text("goal"), "harmful")


def _jailbreakbench(row: Fields) -> Row:
    """{goal, behavior, category}. The benign split has the same columns, and is recognised by its published name.

    A file with "benign" in another name may be either split, so its kind is not known.
    """
    name = row.file.name.lower().replace("_", "-")
    kind: Kind | None = "benign" if name.startswith("benign-behaviors") else None if "benign" in name else "harmful"
    return _one(row, row.text("goal", "Goal"), kind, row.text("category", "Category"))


def _artifacts(row: Fields) -> Row:
    """{goal, prompt, method, …}: the attacks of JailbreakBench, as they were sent."""
    return _one(row, row.text("prompt"), "harmful", row.text("method"))


def _do_not_answer(row: Fields) -> Row:
    """{risk_area, prompt or question}. Many prompts allow a careful answer, which a judge must not take for unsafe."""
    return _one(row, row.text("prompt", "question"), "harmful", row.text("risk_area"))


COCONOT = (
    "Requests with safety concerns",
    "Humanizing requests",
    "Incomplete requests",
    "Unsupported requests",
    "Indeterminate requests",
)


def _coconot(row: Fields) -> Row:
    """{category, subcategory, prompt}. Of the categories only safety is about refusing harm. Rows with a chosen answer
    are
    the contrast set: harmless prompts that look like the others."""
    text, family, category = row.text("prompt"), row.text("subcategory"), row.one_of("category", *COCONOT)
    if "chosen" in row.row:
        return _one(row, text, "benign", family)
    if category != COCONOT[0]:
        raise Unusable("noncompliance for another reason than safety")
    return _one(row, text, "harmful", family)


def _false_refusals(row: Fields) -> Row:
    """{mutated_prompt, is_malicious, attack_type}: CyberSecEval's borderline but harmless questions."""
    return _one(row, row.text("mutated_prompt"), "harmful" if row.flag("is_malicious") else "benign")


def _injection(row: Fields) -> Row:
    """{test_case_prompt, user_input, injection_type}: the system prompt and the injection as one text. Whether the
    injection had an effect is a question of its own (judge_question), which no judge here answers."""
    text = f"{row.text('test_case_prompt')}\n\n{row.text('user_input')}"
    return _one(row, text, "harmful", row.text("injection_type"))


def _alpaca(row: Fields) -> Row:
    """{instruction} and maybe input: Alpaca, AlpacaEval."""
    parts = [row.text("instruction"), row.text("input") if "input" in row.row else ""]
    return _one(row, "\n\n".join(part for part in parts if part.strip()), "general")


def _prompt(row: Fields) -> Row:
    """{prompt, …}: IFEval."""
    return _one(row, row.text("prompt"), "general")


def _truthfulqa(row: Fields) -> Row:
    """{question, best_answer}, or as a table {Question, Best Answer}."""
    return _one(row, row.text("question", "Question"), "general", row.text("category", "Category"))


def _mmlu(row: Fields) -> Row:
    """{question, subject, choices, answer}."""
    choices = row.row.get("choices")
    if not (isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices)):
        raise row.wrong("choices", "a list of texts")
    lettered = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDEFGHIJ", choices, strict=False))
    return _one(row, f"{row.text('question')}\n{lettered}\nAnswer with one letter.", "general", row.text("subject"))


def _formats(*rows: tuple[str, str, str, Callable[[Fields], Row]]) -> dict[str, Format[Row]]:
    return {
        name: Format(about, frozenset(fields.split()), read, WHOLE.get(name), RANKS.get(name, PUBLISHED))
        for name, about, fields, read in rows
    }


RANKS = {
    "own": OWN,
    "own-messages": OWN_CHAT,
    "own-conversation": OWN_CHAT,
    "own-conversations": OWN_CHAT,
    "bare": BARE,
}
# All columns of data sets that are recognised by common words: SimpleSafetyTests has a prompt and a category too, as
# OR-Bench, but all its prompts are harmful.
WHOLE = {
    "hh-rlhf": frozenset({"chosen", "rejected"}),
    "or-bench": frozenset({"prompt", "category"}),
    "advbench": frozenset({"goal", "target"}),
    "alpaca": frozenset({"instruction", "input", "output", "text", "dataset", "generator", "datasplit", "response"}),
    "jailbreakbench": frozenset({"goal", "target", "behavior", "category", "source"}),
    "jailbreakbench-table": frozenset({"Goal", "Target", "Behavior", "Category", "Source"}),
    "truthfulqa-table": frozenset(
        {
            "Type",
            "Category",
            "Question",
            "Best Answer",
            "Best Incorrect Answer",
            "Correct Answers",
            "Incorrect Answers",
            "Source",
        }
    ),
}

FORMATS: dict[str, Format[Row]] = _formats(
    ("own", "prompts of your own", "prompt kind", _own),
    ("own-messages", "conversations of your own", "messages kind", _own_chat("messages")),
    ("own-conversation", "conversations of your own", "conversation kind", _own_chat("conversation")),
    ("own-conversations", "conversations of your own", "conversations kind", _own_chat("conversations")),
    ("messages", "conversations, the user's turn last", "messages", _chat("messages")),
    ("wildchat", "WildChat, LMSYS-Chat", "conversation", _chat("conversation")),
    ("sharegpt", "ShareGPT", "conversations", _chat("conversations")),
    ("hh-rlhf", "HH-RLHF's dialogues", "chosen rejected", _hh),
    ("wildjailbreak", "WildJailbreak", "adversarial data_type", _wildjailbreak),
    ("fortress", "FORTRESS", "adversarial_prompt benign_prompt", _fortress),
    ("xstest", "XSTest's prompts", "prompt type label", _xstest),
    ("harmbench", "HarmBench, or AdvBench in its form", "Behavior ContextString", _harmbench),
    ("advbench", "AdvBench", "goal target", _advbench),
    ("jailbreakbench-artifacts", "JailbreakBench's attacks", "goal prompt method", _artifacts),
    ("jailbreakbench", "JailbreakBench's behaviours", "goal behavior category", _jailbreakbench),
    ("jailbreakbench-table", "JailbreakBench's behaviours", "Goal Behavior Category", _jailbreakbench),
    ("do-not-answer", "Do-Not-Answer", "risk_area", _do_not_answer),
    ("coconot", "CoCoNot", "category subcategory prompt", _coconot),
    ("cyberseceval-frr", "CyberSecEval's false refusals", "mutated_prompt is_malicious", _false_refusals),
    ("cyberseceval-injection", "CyberSecEval's prompt injections", "test_case_prompt user_input", _injection),
    ("ifeval", "IFEval", "key prompt instruction_id_list", _prompt),
    ("mmlu", "MMLU", "question choices answer", _mmlu),
    ("truthfulqa", "TruthfulQA", "question best_answer", _truthfulqa),
    ("truthfulqa-table", "TruthfulQA", "Question", _truthfulqa),
    ("alpaca", "Alpaca, AlpacaEval", "instruction", _alpaca),
    ("or-bench", "OR-Bench", "prompt category", _or_bench),
    ("bare", "prompts alone", "prompt", _bare),
)
