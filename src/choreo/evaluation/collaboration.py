"""The untrained collaboration of two models that a user has already, measured: no training, no weights needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choreo.agents.base import Agent
from choreo.agents.endpoint import EndpointAgent
from choreo.agents.local import LocalAgent
from choreo.clients.http import Endpoint
from choreo.config.addresses import model_at_url
from choreo.config.collaboration import Collaboration
from choreo.config.wording import DEFAULT, Wording
from choreo.data.mixture import mixture
from choreo.data.reading import taken
from choreo.errors import Interrupted
from choreo.evaluation.metrics import measure
from choreo.files.utf8 import REPLACED
from choreo.game.play import NOTHING, play
from choreo.judges.base import JudgeDown, judge_episodes, reasons
from choreo.judges.resolve import choose, counts, describe, unread_history
from choreo.runs.progress import Progress
from choreo.types import AGENTS, AnyTurn, Episode

ALONE, TOGETHER = "base", "collaboration-untrained"
CHUNK = 32  # prompts between two updates of the bar; earlier replies and judgements are kept
PATIENCE = 4  # turns in a row without a reply, and a model counts as gone
REPLIES, JUDGEMENTS = "replies.sqlite", "judgements.sqlite"

Played = dict[str, list[Episode[AnyTurn]]]


def run(settings: Collaboration, folder: Path, progress: Progress) -> tuple[dict[str, Any], Played]:
    """Plays and judges every prompt; the summary, and judged episodes by system.

    `folder` keeps what models and judges replied, so that the same evaluation goes on after a kill and costs nothing
    twice. Raises BadInput for prompts, models or a judge that cannot be used; Interrupted where one went away.
    """
    mixed = mixture(settings.suites, settings.seed)
    judge = choose(settings.judge, folder / JUDGEMENTS)
    agents = {AGENTS[0]: agent_of(settings.conversation, settings, folder)}
    same = settings.feedback in ("", settings.conversation)
    agents[AGENTS[1]] = agents[AGENTS[0]] if same else agent_of(settings.feedback, settings, folder, reviews=True)
    for name, source in mixed.counts.items():
        progress.say(taken(name, source))
    if unread := unread_history([settings.judge], mixed.prompts):
        progress.say(unread)
    progress.start("evaluating", len(mixed.prompts))
    together: list[Episode[AnyTurn]] = []
    try:
        for first in range(0, len(mixed.prompts), CHUNK):
            played = play(
                agents,
                [(prompt, 0) for prompt in mixed.prompts[first : first + CHUNK]],
                settings.limits,
                key=(settings.seed, "evaluation"),
                temperature=settings.temperature,
            )
            together += judge_episodes(judge, played)
            progress.advance(len(together))
            if progress.interrupted:
                raise Interrupted("stopped")
    except JudgeDown as gone:
        raise JudgeDown(f"{gone} (the answers of the models are kept too)") from None
    systems: Played = {ALONE: [first_answer(episode) for episode in together], TOGETHER: together}
    named = {role: {"name": agent.name, **getattr(agent, "counts", {})} for role, agent in agents.items()}
    return {
        "schema": 1,
        "method": "evaluation",
        "recipe": TOGETHER,
        "seed": settings.seed,
        "suites": mixed.counts,
        "agents": named,
        "judge": describe(judge),
        "judging": counts(judge),
        "open": {name: reasons([e.verdicts[-1] for e in episodes]) for name, episodes in systems.items()},
        "failed": sum(bool(turn.failure) for e in together for turn in (*e.answers, *e.reviews)),
        "failures": {
            "answers": failures([turn for e in together for turn in e.answers]),
            "reviews": failures([turn for e in together for turn in e.reviews if turn.failure != NOTHING]),
        },
        "broken": {
            "answers": sum(REPLACED in turn.text for e in together for turn in e.answers),
            "reviews": sum(REPLACED in turn.text for e in together for turn in e.reviews),
        },
        "systems": {
            name: measure(episodes, seed=settings.seed, ability=False, lenient=True)
            for name, episodes in systems.items()
        },
    }, systems


def agent_of(named: str, settings: Collaboration, folder: Path, *, reviews: bool = False) -> Agent[AnyTurn]:
    """The agent that `named` names: MODEL@URL, or a model that is loaded here.

    folder: where a server's replies are kept. reviews: the model plays the feedback agent alone.
    Raises BadInput where there is no such model.
    """
    if (server := model_at_url(named)) is not None:
        model, url = server
        endpoint = Endpoint(
            url,
            model,
            settings.key_variable,
            timeout=settings.timeout,
            retries=settings.retries,
            concurrency=settings.concurrency,
            patience=PATIENCE,
        )
        return EndpointAgent(endpoint, folder / REPLIES, schema=settings.json_schema, wording=settings.wording)
    setting = "feedback_template" if reviews else "template"
    return local_agent(
        named,
        settings.seed,
        getattr(settings, setting),
        f"--set {setting}=FILE",
        settings.rounds,
        settings.wording,
        dtype=settings.dtype,
        device=settings.device,
    )


def local_agent(
    model: str,
    seed: int = 0,
    template: str = "",
    setting: str = "template=FILE",
    rounds: int = 1,
    wording: Wording = DEFAULT,
    **loading: str,
) -> LocalAgent:
    """A base by its name (`base_folder`), as it is: the untrained model plays both roles.

    template, setting, rounds, wording: as in `load_chat`. loading: as in `Team.open`.
    """
    from choreo.engine.agent import Team
    from choreo.engine.local import LocalEngine
    from choreo.models.load import load_chat
    from choreo.models.resolve import base_folder

    folder = base_folder(model)
    chat = load_chat(folder, template, setting, rounds, wording)
    team = Team.open(folder, AGENTS, seed=seed, **loading)
    engine = LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)
    return LocalAgent(chat, engine, trained=False, name=model)


def first_answer(episode: Episode[AnyTurn]) -> Episode[AnyTurn]:
    """The same game without a feedback agent: c_0 does not depend on what follows it."""
    return replace(episode, answers=episode.answers[:1], reviews=(), feedback=(), verdicts=episode.verdicts[:1])


def failures(turns: Sequence[AnyTurn]) -> dict[str, int]:
    """Why turns failed, by kind of reason, the most frequent first."""
    return dict(Counter(turn.failure.split(":")[0] for turn in turns if turn.failure).most_common())
