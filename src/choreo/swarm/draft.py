"""A first annotation of any paper's text, by rules that a reader can follow, for a person to finish.

It finds sentences that claim something and guesses metric and direction from their words. It reads no meaning: what
is compared with what, and whether it can be tested here, is left open ("?") and has to be filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from choreo.errors import BadInput
from choreo.swarm.annotations import OPEN, Annotation, Claim, Metric, RiskProfile, Role

MOST_CLAIMS = 20

_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})(?:v\d+)?\b")
_CLAIM = re.compile(
    r"\b(we|our \w+|results?|experiments?|findings?|analys[ie]s)\b.{0,60}?\b(show|find|found|demonstrat|prov|establish|"
    r"indicat|suggest|observ|reveal|achiev)|\b(outperform|surpass|reduc|improv|lower|increas|degrad|collaps|prevent|"
    r"mitigat)\w*\b",
    re.IGNORECASE | re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_PARAGRAPH = re.compile(r"\n\s*\n")

# First match wins; stems, lower case.
_METRICS: tuple[tuple[Metric, tuple[str, ...]], ...] = (
    ("orr", ("overrefus", "over-refus", "refusal", "refus")),
    ("asr", ("attack success", "jailbreak", "unsafe")),
    ("ecosystem_collusion_risk", ("collu", "cartel")),
    ("ecosystem_threat_level", ("injection", "exfiltrat", "contagion")),
    ("toxicity_rate", ("toxic", "harmful", "harmless", "danger")),
    ("quality_gap", ("adverse selection", "selection effect")),
    ("net_social_welfare", ("welfare", "surplus")),
    ("toxicity_rate_all", ("quality", "alignment performance", "reward")),
)
# Metrics in which less is better: there "improves" means lower.
_LESS_IS_BETTER = frozenset(
    {"orr", "asr", "toxicity_rate", "toxicity_rate_all", "ecosystem_collusion_risk", "ecosystem_threat_level"}
)
_DOWN = re.compile(r"\b(reduc|lower|decreas|fewer|less|mitigat|prevent|drop|diminish)", re.IGNORECASE)
_UP = re.compile(r"\b(increas|higher|raise|more|grow)", re.IGNORECASE)
_BETTER = re.compile(r"\b(improv|better|outperform|surpass|enhanc)", re.IGNORECASE)
_WORSE = re.compile(r"\b(degrad|collaps|worse|deteriorat)", re.IGNORECASE)
_SAME = re.compile(r"\b(without (?:degrading|hurting|harming)|unchanged|preserv|maintain)", re.IGNORECASE)

_FAILURES = {
    "collusion": ("collu", "cartel", "conspir"),
    "deception": ("decept", "deceiv", "mislead"),
    "adverse_selection": ("adverse selection", "information asymmetry"),
    "over_refusal": ("overrefus", "over-refus"),
    "jailbreak": ("jailbreak", "adversarial attack"),
    "reward_hacking": ("reward hack", "reward model exploit", "specification gaming"),
    "collapse": ("collapse",),
    "miscoordination": ("miscoordination", "coordination failure"),
}
_ASSUMPTIONS = {
    "assumes_honest_majority": ("honest majority", "majority of agents are honest"),
    "single_round": ("single round", "one round", "one-shot"),
    "static_eval_only": ("static evaluation", "non-adaptive"),
    "fixed_population": ("fixed population", "fixed number of agents"),
    "judge_is_right": ("llm judge", "llm-as-a-judge", "gpt-4 as", "reward model"),
}
_DENSITY = re.compile(r"\b(agents?|interact|communicat|collaborat|negotiat|feedback|teachers?|students?)")
_ROLE = re.compile(
    r"\b((?:[a-z]+[- ])?(?:agent|teacher|student|judge|moderator|critic|verifier|attacker|debater)s?)\b", re.IGNORECASE
)
_DULL = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those each every all any other both two three multiple
    more many our their its one which and or of by with for between to as single multi llm ai""",
    )
)


def draft(text: str, name: str) -> Annotation:
    """A draft annotation of a paper's plain text or Markdown. name: for its paper_id. The same text, the same draft.

    Raises BadInput when the text is empty.
    """
    if not text.strip():
        raise BadInput(f"{name}: holds no text")
    found = _ARXIV.search(text)
    lower = " ".join(text.lower().split())
    words = max(1, len(lower.split()))
    density = 100 * len(_DENSITY.findall(lower)) / words
    return Annotation(
        paper_id=Path(name).stem or name,
        arxiv_id=found[1] if found else "",
        title=_title(text),
        status="draft",
        risk_profile=RiskProfile(
            interaction_density="high" if density >= 3 else "medium" if density >= 1 else "low",
            failure_modes=_named(lower, _FAILURES),
            assumptions=_named(lower, _ASSUMPTIONS),
        ),
        claims=tuple(_claims(text)),
        roles={role: Role(agent=OPEN, side=OPEN, lever=OPEN) for role in _roles(text)},
    )


def _title(text: str) -> str:
    first = next(line.strip() for line in text.splitlines() if line.strip())
    return first.strip("#* \t") or first


def _claims(text: str) -> Iterator[Claim]:
    seen: set[str] = set()
    for line, sentence in _sentences(text):
        plain = " ".join(sentence.split())
        if not 30 <= len(plain) <= 600 or plain in seen or not _CLAIM.search(plain):
            continue
        seen.add(plain)
        metric: Metric = next((m for m, stems in _METRICS if any(stem in plain.lower() for stem in stems)), "?")
        yield Claim(
            claim=plain,
            evidence=f"line {line}",
            metric=metric,
            arm=OPEN,
            baseline=OPEN,
            direction=_direction(plain, metric),
            margin=0.0,
            testable=metric != OPEN,
            note="" if metric != OPEN else "no metric here fits its words",
        )
        if len(seen) == MOST_CLAIMS:
            return


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """(line it begins on, sentence); a paragraph ends one too."""
    at = 0
    for paragraph in _PARAGRAPH.split(text):
        at = text.index(paragraph, at)
        begin = at
        for sentence in _SENTENCE.split(paragraph):
            begin = text.index(sentence, begin)
            lead = len(sentence) - len(sentence.lstrip())
            yield text.count("\n", 0, begin + lead) + 1, sentence
            begin += len(sentence)
        at += len(paragraph)


def _direction(sentence: str, metric: str) -> str:
    if _SAME.search(sentence):
        return "same"
    if metric == OPEN:
        return OPEN
    better, worse = ("lower", "higher") if metric in _LESS_IS_BETTER else ("higher", "lower")
    for pattern, direction in ((_DOWN, "lower"), (_WORSE, worse), (_BETTER, better), (_UP, "higher")):
        if pattern.search(sentence):
            return direction
    return OPEN


def _named(lower: str, vocabulary: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for name, stems in vocabulary.items() if any(stem in lower for stem in stems))


def _roles(text: str, least: int = 3, most: int = 6) -> Sequence[str]:
    """Parts that the paper names at least `least` times, most often first."""
    counts: dict[str, int] = {}
    for match in _ROLE.finditer(text):
        words = match[1].lower().replace("-", " ").removesuffix("s").split()
        if len(words) == 2 and words[0] in _DULL:
            words = words[1:]
        if words not in (["agent"], ["judge"]):
            role = " ".join(words)
            counts[role] = counts.get(role, 0) + 1
    named = [role for role, count in counts.items() if count >= least]
    return sorted(named, key=lambda role: -counts[role])[:most]
