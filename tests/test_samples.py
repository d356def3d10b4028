"""Episodes into single-agent samples: one action each, its own reward, drawn by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from architectures import KINDS, tokenizer

from choreo.agents.local import turn_from
from choreo.algorithms.advantages import ESTIMATORS
from choreo.config.judge import Judge
from choreo.engine.requests import Completion
from choreo.judges.base import judge_episodes
from choreo.methods.waltz.figures import step_figures
from choreo.methods.waltz.recipe import Rewards, Stages, WaltzRecipe, learners
from choreo.methods.waltz.samples import split
from choreo.models.template import TemplateChat
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn, Verdict

GOOD, UNSAFE, UNSURE = Verdict(False, False), Verdict(True, False), Verdict(None, None)
BOTH = (CONVERSATION, FEEDBACK)
REWARDS = Rewards(dir="signed", alpha=0.65, label=0.5, gamma=0.1)
ASKS = Feedback("r", True, False, "f")


def turn(agent: str, round: int) -> Turn:
    ids = (round, 10 * (agent == FEEDBACK), 3)
    return Turn(agent, round, (7, round), ids, (-0.1, -0.2, -0.3), 0, "text", True)


def episode(name: str, verdicts: list[Verdict], sample: int = 0) -> Episode:
    """Played to the round limit: every answer but the last was sent back."""
    rounds = len(verdicts) - 1
    return Episode(
        Prompt(name, "p", "harmful", "s"),
        sample,
        tuple(turn(CONVERSATION, t) for t in range(rounds + 1)),
        tuple(turn(FEEDBACK, t) for t in range(rounds)),
        (ASKS,) * rounds,
        tuple(verdicts),
    )


def cut(episodes, agents=BOTH, key=(0, 0)):
    return split(episodes, agents=agents, rewards=REWARDS, stage=1, key=key)


def rewards_of(undetermined: str) -> Rewards:
    return REWARDS.model_copy(update={"undetermined": undetermined})


def test_each_sample_is_one_action_with_its_own_reward():
    verdicts = [UNSAFE, UNSAFE, GOOD]
    samples = cut([episode(f"p{i}", verdicts) for i in range(400)]).samples
    seen = {}
    for s in samples:
        assert s.context == (7, s.ids[0]) and s.logprobs == (-0.1, -0.2, -0.3)
        assert s.reward == pytest.approx(sum(s.parts.values()))
        seen.setdefault((s.agent, s.ids[0], round(s.reward, 6)), []).append(s)
    # p → c_0 or (p, H) → c_T, never c_1; f_0 changed nothing, f_1 mended the answer.
    assert seen.keys() == {(CONVERSATION, 0, 0.0), (CONVERSATION, 2, 1.0), (FEEDBACK, 0, 0.6), (FEEDBACK, 1, 1.25)}
    assert all(abs(len(found) / 400 - 0.5) < 0.1 for found in seen.values())


def test_the_draw_belongs_to_the_name():
    episodes = [episode(f"p{i}", [UNSAFE, GOOD], sample) for i in range(20) for sample in range(2)]
    whole = cut(episodes).samples
    apart = [s for e in reversed(episodes) for s in cut([e]).samples]
    assert sorted(map(repr, whole)) == sorted(map(repr, apart))
    assert cut(episodes, key=(0, 1)).samples != whole != cut(episodes, key=(1, 0)).samples


def test_groups_hold_the_samples_of_one_act_of_one_prompt():
    samples = cut([episode("p", [UNSAFE, GOOD], sample) for sample in range(30)]).samples
    assert {(s.agent, s.group) for s in samples} == {
        (CONVERSATION, "p/answer0"),
        (CONVERSATION, "p/answer1"),
        (FEEDBACK, "p/feedback0"),
    }


def test_only_the_agents_asked_for():
    episodes = [episode(f"p{i}", [UNSAFE, GOOD]) for i in range(10)]
    for agents in ((CONVERSATION,), (FEEDBACK,), ()):
        result = cut(episodes, agents)
        assert len(result.samples) == 10 * len(agents) and {s.agent for s in result.samples} == set(agents)
    assert learners(Stages(), 1) == (FEEDBACK,) and set(learners(Stages(), 2)) == set(BOTH)
    assert learners(Stages(train="feedback"), 2) == (FEEDBACK,)
    assert learners(Stages(train="conversation"), 1) == (CONVERSATION,)


def test_turns_by_rule_are_nobodys_samples():
    played = episode("p", [UNSAFE, GOOD])
    for sample in range(20):
        by_rule = replace(
            played,
            sample=sample,
            answers=(played.answers[0], replace(played.answers[1], agent="guard")),
            reviews=(replace(played.reviews[0], agent="oracle"),),
        )
        assert all(s.agent == CONVERSATION and s.ids[0] == 0 for s in cut([by_rule]).samples)


def test_an_undetermined_answer_earns_nothing_and_its_review_is_dropped_and_counted():
    result = cut([episode(f"p{i}", [UNSURE]) for i in range(5)])
    assert [(s.agent, s.reward) for s in result.samples] == [(CONVERSATION, 0.0)] * 5 and result.dropped == 0
    result = cut([episode(f"p{i}", [UNSURE, GOOD]) for i in range(40)])
    assert result.dropped == 40 and {s.agent for s in result.samples} == {CONVERSATION}
    assert {s.reward for s in result.samples} == {0.0, 1.0}  # c_0 undetermined, c_1 good
    result = cut([episode(f"p{i}", [UNSAFE, UNSURE]) for i in range(40)])
    assert result.dropped == 0 and result.dir_unpaid == 40


def test_what_a_fallible_judge_leaves_open_is_learnt_from_by_nobody_unless_the_answer_says_nothing():
    empty = replace(episode("q", [replace(UNSURE, garbled="no words")]), sample=1)
    failed = episode("r", [UNSURE])
    failed = replace(failed, answers=(replace(failed.answers[0], failure="thought only"),))
    games = [episode("p", [UNSURE]), empty, failed, episode("s", [GOOD])]
    result = split(games, agents=BOTH, rewards=rewards_of("drop"), stage=1, key=(0, 0))
    assert [(s.group[0], s.reward) for s in result.samples] == [("q", 0.0), ("r", 0.0), ("s", 1.0)]
    assert result.dropped == 1
    of_judge = {kind: WaltzRecipe(judge=Judge(kind=kind)).rewards.undetermined for kind in ("exact", "offline")}
    assert of_judge == {"exact": "zero", "offline": "drop"}


def test_an_answer_that_is_dropped_is_in_no_mean_and_is_counted():
    """Single-agent RL on one group, by hand. Dropped: μ = 1/2, σ = 1/2. Paid 0: μ = 1/3, σ = √2/3."""
    games = [episode("p", [verdict], sample) for sample, verdict in enumerate((GOOD, UNSAFE, UNSURE))]
    by_hand = {"drop": ([1, -1], 1), "zero": ([2**0.5, -(0.5**0.5), -(0.5**0.5)], 0)}
    for undetermined, (expected, dropped) in by_hand.items():
        result = split(games, agents=(CONVERSATION,), rewards=rewards_of(undetermined), stage=2, key=(0, 0))
        for name in ("grpo", "reinforce++"):
            assert [s.advantages[-1] for s in ESTIMATORS[name](result.samples)] == pytest.approx(expected), name
        assert step_figures(games, result)["dropped"] == dropped
    alone = ESTIMATORS["rloo"](split(games[1:], agents=BOTH, rewards=rewards_of("drop"), stage=2, key=(0, 0)).samples)
    assert [s.advantages for s in alone] == [(0, 0, 0)]  # nothing is left in its group to compare it with


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_answer_that_is_nothing_but_reasoning_never_pays(estimator):
    """Cut off while it was thinking: judged by nobody, and no better off than an unsafe answer in any estimator."""
    _, template, special, names, _ = KINDS["qwen"]
    chat = TemplateChat(tokenizer(template, special, **names))
    prompt = Prompt("p", "How do I open a jar?", "benign", "s")
    games = []
    for sample, text in enumerate(("<think>\nA jar has a lid, and", "unsafe, so", "Turn the lid.")):
        done = Completion(ids := chat.encode(text), (-0.1,) * len(ids), False, 0)
        game = Episode(prompt, sample, ())
        games.append(replace(game, answers=(turn_from(chat, game, CONVERSATION, (7,), done),)))
    judged = judge_episodes(lambda prompt, answer: Verdict("unsafe" in answer, False), games)
    assert [game.verdicts[0].undetermined for game in judged] == [True, False, False]
    thought, unsafe, good = ESTIMATORS[estimator](cut(judged).samples)
    assert (thought.reward, unsafe.reward, good.reward) == (0, 0, 1)
    assert max(thought.advantages) <= min(unsafe.advantages) < min(good.advantages)


def test_a_game_without_reviews_and_one_that_was_never_judged():
    assert [s.reward for s in cut([episode("p", [GOOD])]).samples] == [1.0]
    with pytest.raises(ValueError, match="p/0 has not been judged"):
        cut([replace(episode("p", [GOOD]), verdicts=())])


def test_label_noise_is_drawn_anew_for_every_review():
    noisy = REWARDS.model_copy(update={"label_noise": 0.5})
    episodes = [episode(f"p{i}", [UNSAFE, GOOD]) for i in range(200)]
    samples = split(episodes, agents=(FEEDBACK,), rewards=noisy, stage=1, key=(0, 0)).samples
    assert 0.35 < sum(s.parts["label"] > 0 for s in samples) / 200 < 0.65


def test_what_is_paid_is_kept_by_episode_even_where_two_samples_are_alike():
    twins = [episode("p", [UNSAFE, GOOD], 0), episode("p", [UNSAFE, UNSAFE], 1), episode("q", [UNSURE], 0)]
    paid = cut(twins, (FEEDBACK,)).paid
    assert [sum(parts.values()) for parts in paid] == [pytest.approx(1.25), pytest.approx(0.6), 0]
    assert paid[0].keys() == {"feedback/dir", "feedback/label", "feedback/format"}
