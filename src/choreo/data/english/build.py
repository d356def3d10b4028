"""Makes the shipped files of prompts from published data and from the texts in `own/`.

Every choice among rows is by a checksum of the row's id, so that the same data give the same files on every machine.
Held-out prompts are chosen first. A row that comes near to one that was chosen before, by the measure of
`choreo.data.overlap`, is dropped. That measure sees trigrams of words; DATA_CARD.md names what it has missed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path

from choreo.data.mixture import PLACE
from choreo.data.overlap import Seen
from choreo.errors import BadInput
from choreo.files.rows import Fields, rows
from choreo.types import Kind, Prompt

OWN = Path(__file__).parent / "own"
HERE = "{request}"  # in a wrapper, the place for the request
FILES = ("train.jsonl", "heldout.jsonl")

WORDS = 40  # a request has at most so many words
ATTACK_WORDS = 100  # and an attack with its request so many
WRAPPER_WORDS = 60  # of a jailbreak in the wild, which are mostly much longer

# XSTest's types that are measured on alone. A type and its contrast are on one side.
HELDOUT_TYPES = ("figurative_language", "safe_targets", "historical_events", "privacy_fictional")
COCONOT_HARMFUL = ("dangerous or sensitive topics", "privacy violations", "triggers for offensive language")
SAFETY = "Requests with safety concerns"

# Requests on the sexual abuse of children are not shipped, and neither are rows with broken characters.
_LEFT_OUT = re.compile(r"child porn|pa?edophil|(?=.*\bsex)(?=.*\b(child|minor|underage|teen))|[√�]|‚Ä", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ShippedPrompt:
    """A line of a shipped file.

    id: SET/NAME of the row in its data set, with +FAMILY-NUMBER where it is laid into a wrapper. suite: what it is
    reported under. source: whose words they are. family: the attack, or what kind of request it is in its data set.
    """

    id: str
    prompt: str
    kind: Kind
    suite: str
    source: str
    family: str


def built(folder: Path) -> dict[str, list[ShippedPrompt]]:
    """The rows of each of FILES, from the published data in `folder`. Raises BadInput for a file that is not there."""
    heldout_harmful, requests = _heldout_harmful(folder)
    safe = _xstest(folder, "safe")
    coconot = _distinct(_coconot(folder, "coconot_pref.jsonl", "benign", ()))
    heldout_benign = [row for row in safe if row.family in HELDOUT_TYPES]
    heldout_benign += _first(87, coconot)
    heldout = [*heldout_harmful, *heldout_benign, *_own("general-heldout.txt", "general")]

    def new(candidates: Sequence[ShippedPrompt]) -> list[ShippedPrompt]:
        """The candidates that are near to no held-out prompt, nor to a request in a held-out attack."""
        return _distinct(candidates, [*requests, *heldout])

    contrasts = new([row for row in _xstest(folder, "unsafe") if _type(row) not in HELDOUT_TYPES])
    asked = new(_coconot(folder, "coconot_eval.jsonl", "harmful", COCONOT_HARMFUL))
    commanded = _distinct(_advbench(folder), [*requests, *heldout, *contrasts, *asked])
    attacked = _first(150, commanded)
    plain = _first(300 - len(contrasts) - len(asked), [row for row in commanded if row not in attacked])
    train = [*contrasts, *asked, *plain, *_wrapped(attacked, _wrappers("attacks-train.txt"), "wrapped")]
    train += new([row for row in safe if row.family not in HELDOUT_TYPES])
    train += new(coconot)
    train += new(_own("benign.txt", "benign"))
    train += new(_own("general-train.txt", "general"))
    return {"train.jsonl": train, "heldout.jsonl": heldout}


def jsonl(made: Iterable[ShippedPrompt]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in made)


def _heldout_harmful(folder: Path) -> tuple[list[ShippedPrompt], list[ShippedPrompt]]:
    """(held-out harmful rows, the bare requests of all of them). No request is in two rows."""
    standard = _distinct(_harmbench(folder))
    contrasts = [row for row in _xstest(folder, "unsafe") if _type(row) in HELDOUT_TYPES]
    behaviours = _distinct(_jailbreakbench(folder), standard)
    pair, by_pair = _artifacts(folder, "PAIR", behaviours)
    left = [row for row in behaviours if row not in by_pair]
    suffixes, by_suffix = _artifacts(folder, "GCG", left)
    left = [row for row in left if row not in by_suffix]
    wrapped = _first(64, standard)
    ours, wild = wrapped[:56], wrapped[56:]
    plain = [
        *_first(28, _distinct(contrasts, [*standard, *behaviours])),
        *_first(26, [row for row in standard if row not in wrapped]),
        *_first(26, left),
    ]
    attacks = [
        *_wrapped(ours, _wrappers("attacks-heldout.txt"), "wrapped"),
        *_wrapped(wild, _in_the_wild(folder), "published-attacks"),
        *suffixes,
        *pair,
    ]
    return [*plain, *attacks], [*plain, *wrapped, *by_pair, *by_suffix]


def _artifacts(
    folder: Path, method: str, behaviours: Sequence[ShippedPrompt]
) -> tuple[list[ShippedPrompt], list[ShippedPrompt]]:
    """(attacks on eight of the behaviours that drew a harmful answer, these behaviours)."""
    by_goal = {row.prompt: row for row in behaviours}
    found: dict[str, ShippedPrompt] = {}
    for row in _read(folder, "jbb_attack_artifacts.jsonl"):
        goal, text = row.text("goal"), row.text("prompt")
        if row.text("method") == method and row.flag("jailbroken") and goal in by_goal and goal not in found:
            attack = _row(f"{by_goal[goal].id}+{method.lower()}", text, "harmful", "published-attacks", "", method)
            attack = replace(attack, source="JailbreakBench")
            if _fits(attack, ATTACK_WORDS - 20):
                found[goal] = attack
    chosen = _first(8, list(found.values()))
    return chosen, [by_goal[goal] for goal, attack in found.items() if attack in chosen]


def _xstest(folder: Path, label: str) -> list[ShippedPrompt]:
    kind: Kind = "benign" if label == "safe" else "harmful"
    found = [row for row in _read(folder, "xstest_prompts.jsonl") if row.text("label") == label]
    return _distinct(
        [
            _row(f"xstest/{row.text('id')}", row.text("prompt"), kind, "xstest", "XSTest", row.text("type"))
            for row in found
        ]
    )


def _type(row: ShippedPrompt) -> str:
    """The type of an XSTest row, or the one that it is the contrast of."""
    return row.family.removeprefix("contrast_")


def _coconot(folder: Path, file: str, kind: Kind, families: Sequence[str]) -> list[ShippedPrompt]:
    """Rows on safety; with `families`, those subcategories alone."""
    return [
        _row(f"coconot/{row.text('id')}", row.text("prompt"), kind, "coconot", "CoCoNot", row.text("subcategory"))
        for row in _read(folder, file)
        if row.text("category") == SAFETY and row.text("subcategory") in (families or (row.text("subcategory"),))
    ]


def _advbench(folder: Path) -> list[ShippedPrompt]:
    return [
        _row(f"advbench/{row.text('BehaviorID')}", row.text("Behavior"), "harmful", "advbench", "AdvBench", "")
        for row in _read(folder, "advbench.jsonl")
    ]


def _harmbench(folder: Path) -> list[ShippedPrompt]:
    return [
        _row(
            f"harmbench/{row.text('BehaviorID')}",
            row.text("Behavior"),
            "harmful",
            "harmbench",
            "HarmBench",
            row.text("SemanticCategory"),
        )
        for row in _read(folder, "harmbench_text.jsonl")
        if row.text("FunctionalCategory") == "standard"
    ]


def _jailbreakbench(folder: Path) -> list[ShippedPrompt]:
    return [
        _row(
            f"jailbreakbench/{row.row['index']}",
            row.text("goal"),
            "harmful",
            "jailbreakbench",
            "JailbreakBench",
            row.text("category"),
        )
        for row in _read(folder, "jbb_behaviors.jsonl")
    ]


def _own(file: str, kind: Kind) -> list[ShippedPrompt]:
    part = file.split(".")[0]
    return [
        _row(f"choreo/{part}-{number}", text, kind, "choreo", "choreo", family)
        for number, (family, text) in enumerate(_sections(file), start=1)
    ]


def _row(id: str, text: str, kind: Kind, suite: str, source: str, family: str) -> ShippedPrompt:
    return ShippedPrompt(id, text.strip(), kind, suite, source, family)


def _wrappers(file: str) -> list[tuple[str, str]]:
    """(name, text with HERE in it) of each wrapper of our own."""
    numbers: Counter[str] = Counter()
    found = []
    for family, text in _sections(file):
        numbers[family] += 1
        found.append((f"{family}-{numbers[family]}", text))
    return found


def _in_the_wild(folder: Path) -> list[tuple[str, str]]:
    """The same of jailbreaks that communities shared, of those that are short and have one place for a request."""
    return [
        (f"in-the-wild-{row.line}", PLACE.sub(HERE, text))
        for row in _read(folder, "jailbreak_prompts_in_the_wild.jsonl")
        if len(PLACE.findall(text := row.text("prompt"))) == 1 and 20 <= _words(text) <= WRAPPER_WORDS
    ]


def _wrapped(asked: Sequence[ShippedPrompt], around: Sequence[tuple[str, str]], suite: str) -> list[ShippedPrompt]:
    """Each request in a wrapper, all wrappers equally often."""
    made = []
    for number, row in enumerate(asked):
        name, wrapper = around[number % len(around)]
        request = row.prompt if row.prompt.endswith((".", "!", "?")) else f"{row.prompt}."
        text = wrapper.replace(HERE, request)
        if _words(text) > ATTACK_WORDS:
            raise BadInput(f"{row.id}+{name}: has {_words(text)} words, and {ATTACK_WORDS} are the most")
        made.append(replace(row, id=f"{row.id}+{name}", prompt=text, suite=suite, family=name.rpartition("-")[0]))
    return made


def _sections(file: str) -> Iterator[tuple[str, str]]:
    """(heading, line) of every line of a file of own texts. A heading is a line that begins with #."""
    heading = ""
    for line in (OWN / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            heading = line.removeprefix("# ")
        elif line.strip():
            yield heading, line


def _read(folder: Path, file: str) -> Iterator[Fields]:
    """The rows of a published file, without those that `own/left-out.txt` names. Raises BadInput."""
    unwanted = {name for _, name in _sections("left-out.txt")}
    for line, row in rows(folder / file):
        if isinstance(row, BadInput):
            raise row
        if row.get("id") not in unwanted:
            yield Fields(folder / file, line, row)


def _fits(row: ShippedPrompt, words: int = WORDS) -> bool:
    return bool(row.prompt) and _words(row.prompt) <= words and not _LEFT_OUT.search(row.prompt)


def _words(text: str) -> int:
    return len(text.split())


def _distinct(candidates: Sequence[ShippedPrompt], others: Sequence[ShippedPrompt] = ()) -> list[ShippedPrompt]:
    """The candidates of the right length that are near neither to one of `others` nor to one before them."""
    kept: list[ShippedPrompt] = []
    seen = Seen(map(_prompt, others))
    for row in candidates:
        if _fits(row) and not seen.overlap(_prompt(row)):
            kept.append(row)
            seen.add(_prompt(row))
    return kept


def _prompt(row: ShippedPrompt) -> Prompt:
    return Prompt(row.id, row.prompt, row.kind, row.suite)


def _first(count: int, of: Sequence[ShippedPrompt]) -> list[ShippedPrompt]:
    """`count` of the rows, chosen and ordered by a checksum of their ids. Raises BadInput where there are too few."""
    if count > len(of):
        raise BadInput(f"the data have {len(of)} rows of {of[0].suite if of else 'a set'}, and {count} are needed")
    return sorted(of, key=lambda row: blake2b(row.id.encode(), digest_size=8).digest())[:count]
