"""What is recorded and shown of a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.algorithms.advantages import flat_groups
from choreo.methods.waltz.alarms import refusal_share
from choreo.methods.waltz.samples import Split
from choreo.text.feedback import labels_right
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, KINDS, Episode, Verdict


def step_figures(episodes: Sequence[Episode], parts: Split) -> dict[str, float]:
    """A step's figures for metrics.jsonl, from its own episodes: rates are fractions; what has no cases is left out."""
    finals = [(e, e.verdicts[-1]) for e in episodes]
    unsafe, refused = _decided(episodes)
    reviews = [reviewed for e in episodes for reviewed in e.reviewed]
    labels = [right for v, f in reviews if (right := labels_right(f, v)) is not None]
    general = [v for e, v in finals if e.prompt.kind == "general" and not v.undetermined]
    figures = {
        "asr": _mean(unsafe),
        "orr": _mean(refused),
        "general": _mean([v.satisfactory for v in general]),
        **{f"ftr_{k}": _mean([e.triggered for e in episodes if e.prompt.kind == k and e.reviews]) for k in KINDS},
        "label_accuracy": _mean(labels),
        "format_rate": _mean([f is not None for _, f in reviews]),
        "degenerate": _mean([v.degenerate for _, v in finals]),
        "cut_off": _mean([_only_cut_off(e, v) for e, v in finals]),
        "garbled": _mean([bool(v.garbled) for _, v in finals]) or None,
        "undetermined": _mean([v.undetermined for _, v in finals]),
        "refusal_share": refusal_share(episodes),
        "dropped": float(parts.dropped),
        "dir_unpaid": float(parts.dir_unpaid),
    }
    for agent in AGENTS:
        own = [sample for sample in parts.samples if sample.agent == agent]
        figures[f"reward/{agent}"] = _mean([sample.reward for sample in own])
        if agent == FEEDBACK:
            for name in dict.fromkeys(name for sample in own for name in sample.parts):
                figures[f"part/{name}"] = _mean([sample.parts[name] for sample in own if name in sample.parts])
    groups = flat_groups(parts.samples)
    if any(total for _, total in groups.values()):
        flat, total = (sum(column) for column in zip(*groups.values(), strict=True))
        figures["groups_without_gradient"] = flat / total
    return {name: value for name, value in figures.items() if value is not None}


def figures_of_part(part: str, games: Sequence[Episode[Any]], among: Sequence[Episode[Any]]) -> dict[str, float]:
    """Of some `games` of a step, which are judged: "PART/share" of `among`, the step's games that could be such ones,
    and how often their final answers were unsafe ("PART/asr") or over-refused ("PART/orr"), of those decided."""
    unsafe, refused = _decided(games)
    found = {"share": len(games) / len(among) if among else None, "asr": _mean(unsafe), "orr": _mean(refused)}
    return {f"{part}/{name}": value for name, value in found.items() if value is not None}


def _decided(games: Sequence[Episode[Any]]) -> tuple[list[bool], list[bool]]:
    """Of the judged games on harmful prompts whether the final answers are unsafe; of those on benign ones whether they
    over-refuse. What is undetermined is left out."""
    finals = [(game.prompt.kind, game.verdicts[-1]) for game in games]
    unsafe = [verdict.unsafe for kind, verdict in finals if kind == "harmful" and verdict.unsafe is not None]
    refused = [verdict.overrefuse for kind, verdict in finals if kind == "benign" and verdict.overrefuse is not None]
    return unsafe, refused


def _only_cut_off(episode: Episode, verdict: Verdict) -> bool:
    """Whether all that is wrong with the words of the last answer is their end. Where no rule looks for garbled text
    (`judges.base.with_garbled`), an answer that was cut off may be worse than that."""
    looked_at = episode.prompt.meaning is None and episode.prompt.language == "en"
    return looked_at and not (episode.answers[-1].finished or verdict.garbled)


def shown_figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """The figures that the progress of training shows, by the names that it shows."""
    names = {
        f"reward/{CONVERSATION}": "reward",
        "asr": "ASR",
        "orr": "ORR",
        "ftr_general": "FTR general",
        "label_accuracy": "label accuracy",
        f"kl/{CONVERSATION}": "KL",
        "tokens_per_second": "tokens/s",
    }
    return {shown: figures[name] for name, shown in names.items() if name in figures}


def _mean(values: Sequence[float | bool]) -> float | None:
    return sum(values) / len(values) if values else None
