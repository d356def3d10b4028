"""Episodes split into single-agent samples: step (2) of a WaltzRL step (section 4.2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from choreo.methods.waltz.chance import uniform
from choreo.methods.waltz.recipe import Rewards
from choreo.methods.waltz.rewards import Earned, RewardedAction, conversation_reward, feedback_reward, own_reward
from choreo.types import CONVERSATION, FEEDBACK, Episode, Sample, Turn


@dataclass(frozen=True, slots=True)
class Split:
    """samples: of all agents, in the order of the episodes.
    turns: for each sample, the number of its episode and its turn, as "agent/round".

    paid: per episode, what its samples were paid, by "agent/component".
    dropped: samples left out because the judge could not decide on the answer written or read, or because a reward of
        one's own gave None.
    dir_unpaid: feedback samples kept, but without DIR, because the judge could not decide on the revision.
    """

    samples: list[Sample]
    turns: list[tuple[int, str]]
    paid: list[dict[str, float]]
    dropped: int
    dir_unpaid: int

    def advantages(self, samples: Sequence[Sample]) -> list[dict[str, Sequence[float]]]:
        """Per episode, the advantages of the ids of its turns. samples: those of this split, with advantages."""
        found: list[dict[str, Sequence[float]]] = [{} for _ in self.paid]
        for (episode, turn), sample in zip(self.turns, samples, strict=True):
            found[episode][turn] = sample.advantages
        return found


def split(
    episodes: Sequence[Episode],
    *,
    agents: Collection[str],
    rewards: Rewards,
    stage: int,
    key: tuple[int | str, ...],
) -> Split:
    """At most one sample per agent and episode, each rewarded for its own action.

    Conversation: p → c_0 or (p, H_{T-1}) → c_T, each with probability ½ where there was a revision.
    Feedback: (p, c_t) → f_t with t uniform over the rounds reviewed. Both are drawn from
    (key, prompt id, sample), so the draw does not depend on the batch. Turns that no agent of `agents`
    wrote (a guard's, an oracle's) are no samples.

    key: e.g. (seed, step). Raises ValueError for an episode without its verdicts.
    """
    samples: list[Sample] = []
    turns: list[tuple[int, str]] = []
    paid: list[dict[str, float]] = []
    dropped = 0
    dir_unpaid = 0
    for number, episode in enumerate(episodes):
        if len(episode.verdicts) != len(episode.answers):
            raise ValueError(f"episode {episode.prompt.id}/{episode.sample} has not been judged")
        name = (*key, episode.prompt.id, episode.sample)
        own: list[Sample] = []
        last = len(episode.answers) - 1
        t = last if uniform(*name, "answer") < 0.5 else 0
        if CONVERSATION in agents and episode.answers[t].agent == CONVERSATION:
            earned = answer_reward(episode, t, rewards, stage)
            if earned is None:
                dropped += 1
            else:
                own.append(_sample(episode, episode.answers[t], "answer", *earned))
                turns.append((number, f"{CONVERSATION}/{episode.answers[t].round}"))
        t = int(uniform(*name, "feedback") * len(episode.reviews))
        if FEEDBACK in agents and episode.reviews and episode.reviews[t].agent == FEEDBACK:
            earned = review_reward(episode, t, rewards, stage, (*name, t))
            if earned is None:
                dropped += 1
            else:
                revised = episode.verdicts[t + 1] if t < last else None
                dir_unpaid += not rewards.feedback and revised is not None and revised.undetermined
                own.append(_sample(episode, episode.reviews[t], "feedback", *earned))
                turns.append((number, f"{FEEDBACK}/{episode.reviews[t].round}"))
        samples += own
        paid.append({f"{sample.agent}/{name}": value for sample in own for name, value in sample.parts.items()})
    return Split(samples, turns, paid, dropped, dir_unpaid)


def answer_reward(episode: Episode[Any], t: int, rewards: Rewards, stage: int) -> Earned | None:
    """What the answer c_t of a judged game is paid: R_c, or the recipe's own reward. None: nothing is to be learnt.

    An undetermined verdict on text is a failure of the judge, and rewards.undetermined says what comes of it. Text that
    says nothing earns 0 in any case: were it left out, nothing would hold a policy back from it.
    """
    answer, verdict = episode.answers[t], episode.verdicts[t]
    empty = verdict.garbled or answer.failure or not answer.text.strip()
    dropped = verdict.undetermined and not empty and rewards.undetermined == "drop"
    reward = conversation_reward(verdict)
    earned: Earned | None = None if dropped else (reward, {"answer": reward})
    return own_reward(rewards.conversation, _action(episode, t, stage, earned)) if rewards.conversation else earned


def review_reward(
    episode: Episode[Any], t: int, rewards: Rewards, stage: int, key: tuple[int | str, ...]
) -> Earned | None:
    """What the review f_t of a judged game is paid: R_f, or the recipe's own reward. None: nothing is to be learnt.

    key: names the review, as in `rewards.feedback_reward`.
    """
    revised = episode.verdicts[t + 1] if t + 1 < len(episode.verdicts) else None
    earned = feedback_reward(episode.feedback[t], episode.verdicts[t], revised, rewards, stage=stage, key=key)
    return own_reward(rewards.feedback, _review_action(episode, t, stage, earned)) if rewards.feedback else earned


def _action(episode: Episode[Any], t: int, stage: int, earned: Earned | None) -> RewardedAction:
    """The answer c_t, as a reward of one's own sees it. earned: by the paper's equations."""
    reward, parts = earned or (None, {})
    return RewardedAction(
        episode.prompt, episode, t, episode.answers[t].text, episode.verdicts[t], stage, reward=reward, parts=parts
    )


def _review_action(episode: Episode[Any], t: int, stage: int, earned: Earned | None) -> RewardedAction:
    """The review f_t, as a reward of one's own sees it."""
    revised = t + 1 < len(episode.answers)
    return replace(
        _action(episode, t, stage, earned),
        review=episode.reviews[t].text,
        feedback=episode.feedback[t],
        revision=episode.answers[t + 1].text if revised else None,
        revised=episode.verdicts[t + 1] if revised else None,
    )


def _sample(episode: Episode, turn: Turn, act: str, reward: float, parts: dict[str, float]) -> Sample:
    # Later states differ between the samples of one prompt. They share a group all the same: a baseline
    # is unbiased as long as it does not depend on the action, and a group of one has none.
    group = f"{episode.prompt.id}/{act}{turn.round}"
    given = (turn.agent, turn.context, turn.ids, turn.logprobs, group, reward, parts)
    return Sample(*given, choices=turn.choices, sampler=turn.logprobs)
