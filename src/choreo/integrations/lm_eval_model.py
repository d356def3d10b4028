"""The model `choreo` of lm-eval (`choreo-rl[lm-eval]`): agents as they are deployed, put to its generative tasks.

    python -m choreo.integrations.lm_eval_model --model choreo --model_args run=runs/demo --tasks gsm8k

lm-eval looks for models in its own package alone. This module registers one more when it is imported; run as a program,
it then is lm-eval's command line with all its options. In Python:

    import lm_eval
    import choreo.integrations.lm_eval_model

    lm_eval.simple_evaluate("choreo", model_args={"run": "runs/demo", "rounds": 0}, tasks=["gsm8k"])

A pair answers with its feedback rounds, and with rounds=0 its conversation agent answers alone: the difference is what
feedback costs in general ability. Tasks that compare log-probabilities are refused, as a game of turns has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from choreo.config.collaboration import Collaboration
from choreo.config.prompts import Source
from choreo.errors import BadInput
from choreo.evaluation.collaboration import agent_of
from choreo.game.play import play
from choreo.integrations.loading import players, run_agents
from choreo.methods.base import method_of
from choreo.types import CONVERSATION, FEEDBACK, Episode, Limits, Prompt

TOKENS = 1024  # of an answer by models without a recipe, where the task does not say


@register_model("choreo")
class ChoreoLM(LM):  # type: ignore[misc]
    """Agents of a run, or models that were never trained to play.

    run: a run folder of any method; its recipe gives the most tokens of a turn.
    conversation, feedback: models instead of a run, as `choreo eval` names them: MODEL@URL, or a base as `model.base`
        has it. Without `feedback` the one model reviews itself.
    rounds: feedback rounds at most; by default the recipe's, or 1. 0 is the conversation agent alone.
    feedback_tokens: the most new tokens of a review, by models without a recipe.
    folder: where replies of servers are kept.
    device: of models that are loaded here without a recipe. batch_size, max_batch_size: lm-eval gives them, and the
        engine has no use for them. settings: as in `config.collaboration.Collaboration`.
    failed: the number of requests that got no answer. Each counts as an empty one.

    Raises BadInput for names that mean nothing, or where both a run and a model are named.
    """

    def __init__(
        self,
        run: str = "",
        conversation: str = "",
        feedback: str = "",
        *,
        rounds: int | None = None,
        feedback_tokens: int = 512,
        folder: str | Path = ".",
        seed: int = 0,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **settings: Any,
    ):
        super().__init__()
        if bool(run) == bool(conversation):
            raise BadInput("lm-eval: name a run, or a conversation model: run=FOLDER or conversation=MODEL")
        self.seed, self.failed = seed, 0
        self.answering: Any = None  # the agents of a run that is no pair: they answer alone
        if run:
            recipe, agents = run_agents(Path(run))
            if not method_of(recipe).has_pair:
                if rounds:
                    raise BadInput(f"{run}: is a run of {recipe.method}, whose agents answer alone; leave rounds out")
                self.answering = agents
                return
            self.agents = players(agents)
            self.limits: Limits = agents.protocol.limits  # type: ignore[attr-defined]
            self.longest = self.limits.answer_tokens
        else:
            settings |= {"device": device.split(":")[0]} if device else {}
            named = Collaboration(
                conversation=conversation, feedback=feedback, seed=seed, suites={"x": Source(file="x")}, **settings
            )
            self.agents = {CONVERSATION: agent_of(conversation, named, Path(folder))}
            self.agents[FEEDBACK] = agent_of(feedback, named, Path(folder)) if feedback else self.agents[CONVERSATION]
            self.limits = Limits(1, TOKENS, feedback_tokens)
            self.longest = 2**31
        if rounds is not None:
            self.limits = replace(self.limits, rounds=rounds)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The final answer to each request, cut at the task's stops. Temperature is the task's, greedy by default."""
        found: dict[int, str] = {}
        for options in {repr(request.args[1]): request.args[1] for request in requests}.values():
            own = [i for i, request in enumerate(requests) if request.args[1] == options]
            prompts = [Prompt(f"{self.seed}-{i}", str(requests[i].args[0]), "general", "lm-eval") for i in own]
            stops = options.get("until") or []
            for i, answer in zip(own, self._answers(prompts, options), strict=True):
                found[i] = cut(answer, [stops] if isinstance(stops, str) else stops)
        return [found[i] for i in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> NoReturn:
        raise BadInput("lm-eval: this task compares log-probabilities, and agents that answer in turns have none")

    loglikelihood_rolling = loglikelihood

    def _answers(self, prompts: Sequence[Prompt], options: dict[str, Any]) -> list[str]:
        """options: of the task. A prompt that has no answer gets an empty one, and is counted."""
        temperature = float(options.get("temperature", 0.0))
        if self.answering is not None:
            fitting = self.answering.fitting(prompts, "lm-eval")
            played = self.answering.answer(fitting, seed=self.seed, temperature=temperature)
        else:
            tokens = min(self.longest, int(options.get("max_gen_toks", self.limits.answer_tokens)))
            limits = replace(self.limits, answer_tokens=tokens)
            games = [(prompt, 0) for prompt in prompts]
            played = play(self.agents, games, limits, key=(self.seed, "ability"), temperature=temperature)
        answered: dict[str, Episode[Any]] = {
            episode.prompt.id: episode for episode in played if not episode.answers[-1].failure
        }
        self.failed += len(prompts) - len(answered)
        return [answered[p.id].answers[-1].text if p.id in answered else "" for p in prompts]


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`: a whole conversation has no stop words of its own."""
    return text[: min([at for stop in stops if stop and (at := text.find(stop)) >= 0], default=len(text))]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
