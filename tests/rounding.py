"""What rounding may change in what is sampled, and nothing else: the comparisons of tests that batch in two ways.

float32 sums round by the shape of a batch, the kernel and the number of threads. So a token may be another one where
its draw lies within MARGIN of the boundary between both, as float64 has them; what follows it is then another text.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch.func import functional_call

from choreo.agents.base import ACT
from choreo.agents.local import LocalAgent
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine
from choreo.engine.noise import uniforms
from choreo.engine.requests import Ids, Request
from choreo.types import FEEDBACK, Episode

MARGIN = 2.0**-14  # of cumulative probability, in [0, 1]; four times the largest difference seen (docs/architecture.md)
TIE = 2.0**-12  # nats between the two likeliest tokens, for what is greedy
RARE = 0.02  # of texts that may go on differently; 3 in 6000 were seen


@cache
def _double(team: Team) -> torch.nn.Module:
    return copy.deepcopy(team.decoder).double()


def exact_logits(team: Team, agent: str | None, ids: Sequence[int]) -> torch.Tensor:
    """float64 [vocabulary]: the logits after `ids`, from float64 weights, one row alone."""
    overlay = {f"model.{name}": value.detach().double() for name, value in team.weights(agent).items()}
    with torch.inference_mode():
        inputs = {"input_ids": torch.tensor([list(ids)]), "use_cache": False}
        hidden, head = functional_call(_double(team), overlay, (inputs, torch.tensor([len(ids) - 1])))
        return head.logits(hidden)[0]


def same(engine: LocalEngine, agent: str | None, asked: Request, one: Ids, other: Ids, temperature: float) -> bool:
    """Whether both texts are equal. Raises AssertionError where they part for another reason than rounding."""
    if one == other:
        return True
    n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert n < min(len(one), len(other)), f"one text goes on where the other ends: {one}, {other}"
    logits = exact_logits(engine.team, agent, (*asked.context, *one[:n]))
    first, second = sorted((one[n], other[n]))
    told = f"token {n} of {asked.key}: {one[n]} and {other[n]}"
    if temperature == 0:
        gap = (logits.max() - logits[[first, second]]).max().item()
        assert gap < TIE, f"{told}, of which one is {gap:.2e} nats less likely than the likeliest"
        return False
    mass = (logits / temperature).softmax(-1).cumsum(-1)
    drawn = uniforms([asked.key], n + 1)[0, n]
    # What lies between both tokens must be within the margin too: else a third one should have been drawn.
    away = max(abs(mass[first].item() - drawn), abs(mass[second - 1].item() - drawn))
    assert away < MARGIN, f"{told}, whose boundary is {away:.2e} from the draw"
    return False


def all_same(
    engine: LocalEngine,
    agent: str | None,
    asked: Sequence[Request],
    ones: Sequence[Ids],
    others: Sequence[Ids],
    temperature: float | Sequence[float] = 1.0,
) -> list[bool]:
    """`same` for each text; all but RARE of them (and one) are equal."""
    temperatures = [temperature] * len(asked) if isinstance(temperature, float) else temperature
    equal = [same(engine, agent, *each) for each in zip(asked, ones, others, temperatures, strict=True)]
    assert equal.count(False) <= 1 + RARE * len(equal), f"{equal.count(False)} of {len(equal)} texts part"
    return equal


def same_games(
    agents: Mapping[str, LocalAgent],
    ones: Sequence[Episode],
    others: Sequence[Episode],
    key: tuple[int | str, ...],
    answers: float,
    reviews: float,
) -> list[bool]:
    """`same` for the turns that both have of each game, as far as it goes the same way.

    answers, reviews: the temperatures of both agents.
    """
    equal = []
    for one, other in zip(ones, others, strict=True):
        agree = True
        for a, b in zip(_turns(one), _turns(other), strict=False):
            assert (a.agent, a.round, a.context) == (b.agent, b.round, b.context)
            asked = Request(a.context, (*key, one.prompt.id, one.sample, ACT[a.agent], a.round))
            temperature = reviews if a.agent == FEEDBACK else answers
            agree = same(agents[a.agent].engine, a.agent, asked, a.ids, b.ids, temperature)
            if not agree:
                break
        equal.append(agree)
    assert equal.count(False) <= 1 + RARE * len(equal), f"{equal.count(False)} of {len(equal)} games part"
    return equal


def _turns(game: Episode) -> list:
    """In the order in which they were taken."""
    return [turn for i, answer in enumerate(game.answers) for turn in (answer, *game.reviews[i : i + 1])]
