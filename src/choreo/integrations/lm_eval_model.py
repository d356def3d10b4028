"""General ability by lm-eval (`choreo-rl[lm-eval]`): its generative tasks, put to a pair that plays the protocol.

    import lm_eval
    from choreo.integrations.lm_eval_model import Agents

    lm_eval.simple_evaluate(Agents("a@http://localhost:8000/v1", "b@http://localhost:8000/v1"), tasks=["gsm8k"])

The pair answers as it is deployed, feedback included, so that what is measured is what feedback costs in ability. Tasks
that compare log-probabilities are refused: a text interface has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from choreo.config.collaboration import Collaboration
from choreo.config.prompts import Source
from choreo.errors import BadInput
from choreo.evaluation.collaboration import agent_of
from choreo.game.play import play
from choreo.types import CONVERSATION, FEEDBACK, AnyTurn, Episode, Limits, Prompt

TOKENS = 1024  # of an answer, where a task does not say


class Agents(LM):  # type: ignore[misc]
    """conversation, feedback: as `choreo eval` names them; feedback "" is the same model. rounds 0: it answers alone.

    folder: where replies of servers are kept. failed: how many turns gave no answer; each counts as an empty one.
    """

    def __init__(
        self,
        conversation: str,
        feedback: str = "",
        *,
        rounds: int = 1,
        folder: str | Path = ".",
        feedback_tokens: int = 512,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__()
        named = Collaboration(
            conversation=conversation, feedback=feedback, seed=seed, suites={"x": Source(file="x")}, **settings
        )
        self.rounds, self.seed, self.feedback_tokens = rounds, seed, feedback_tokens
        self.agents = {CONVERSATION: agent_of(conversation, named, Path(folder))}
        self.agents[FEEDBACK] = agent_of(feedback, named, Path(folder)) if feedback else self.agents[CONVERSATION]
        self.failed = 0

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The final answer to each request, cut at the task's stops. Temperature is the task's, greedy by default."""
        found: dict[int, str] = {}
        for options in {repr(request.args[1]): request.args[1] for request in requests}.values():
            own = [i for i, request in enumerate(requests) if request.args[1] == options]
            prompts = [(Prompt(f"{self.seed}-{i}", str(requests[i].args[0]), "general", "lm-eval"), 0) for i in own]
            played = play(
                self.agents,
                prompts,
                Limits(self.rounds, int(options.get("max_gen_toks", TOKENS)), self.feedback_tokens),
                key=(self.seed, "ability"),
                temperature=float(options.get("temperature", 0.0)),
            )
            stops = options.get("until") or []
            for i, episode in zip(own, played, strict=True):
                found[i] = cut(self._last(episode), [stops] if isinstance(stops, str) else stops)
        return [found[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> NoReturn:
        raise BadInput("lm-eval: this task compares log-probabilities, and agents that answer in text have none")

    loglikelihood_rolling = loglikelihood

    def _last(self, episode: Episode[AnyTurn]) -> str:
        self.failed += bool(episode.answers[-1].failure)
        return episode.answers[-1].text


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`: a whole conversation has no stop words of its own."""
    return text[: min([at for stop in stops if stop and (at := text.find(stop)) >= 0], default=len(text))]
