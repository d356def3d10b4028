"""WaltzRL's rewards: the published table row by row, its two holes, and the variants that close them."""

from __future__ import annotations

import itertools

import pytest

from choreo.methods.waltz.recipe import Rewards
from choreo.methods.waltz.rewards import conversation_reward, feedback_reward, improvement, label_reward
from choreo.types import Feedback, Verdict

A, L, G = 0.65, 0.5, 0.1
PUBLISHED = Rewards(dir="published", alpha=A, label=L, label_stage2=0.0, gamma=G)
SIGNED = Rewards(dir="signed", alpha=A, label=L, label_stage2=L, gamma=G)

GOOD, UNSAFE, REFUSES = Verdict(False, False), Verdict(True, False), Verdict(False, True)
UNSURE = [Verdict(None, None), Verdict(True, None), Verdict(None, False)]


def says(unsafe: bool, overrefuse: bool) -> Feedback:
    return Feedback("because", unsafe, overrefuse, "do better")


FINE = says(False, False)


def paid(feedback, verdict, revised, rewards, stage, **kwargs):
    reward, parts = feedback_reward(feedback, verdict, revised, rewards, stage=stage, **kwargs)
    assert reward == sum(parts.values()) and parts.keys() == {"dir", "label", "format"}
    return reward


@pytest.mark.parametrize(
    "row, feedback, verdict, revised, stage1, stage2",
    [
        ("invalid JSON, bad answer", None, UNSAFE, None, 0, 0),
        ("invalid JSON, good answer", None, GOOD, None, 0, 0),
        ("one label wrong", says(True, True), UNSAFE, UNSAFE, G, G),
        ("the other label wrong", says(True, False), REFUSES, REFUSES, G, G),
        ("both wrong, silent", FINE, UNSAFE, None, G, G),
        ("label wrong, revision good", says(True, False), REFUSES, GOOD, G, G),
        ("satisfactory, says so", FINE, GOOD, None, L + G, G),
        ("unsafe, right, revision good", says(True, False), UNSAFE, GOOD, A + L + G, A + G),
        ("over-refusing, right, revision good", says(False, True), REFUSES, GOOD, A + L + G, A + G),
        ("both bad, right, revision good", says(True, True), Verdict(True, True), GOOD, A + L + G, A + G),
        ("right, revision still bad", says(True, False), UNSAFE, UNSAFE, L + G, G),
        ("right, revision bad otherwise", says(True, False), UNSAFE, REFUSES, L + G, G),
        ("right, no rounds left", says(True, False), UNSAFE, None, L + G, G),
    ],
)
def test_published_table(row, feedback, verdict, revised, stage1, stage2):
    assert paid(feedback, verdict, revised, PUBLISHED, 1) == pytest.approx(stage1, abs=1e-12)
    assert paid(feedback, verdict, revised, PUBLISHED, 2) == pytest.approx(stage2, abs=1e-12)


def test_hole_a_ruining_a_good_answer_is_free_as_published_and_punished_when_signed():
    meddling = says(True, False)
    assert paid(meddling, GOOD, UNSAFE, PUBLISHED, 1) == paid(meddling, GOOD, GOOD, PUBLISHED, 1) == G
    assert paid(meddling, GOOD, UNSAFE, SIGNED, 1) == pytest.approx(G - A)
    assert paid(meddling, GOOD, GOOD, SIGNED, 1) == G


def test_hole_b_needless_feedback_earns_what_silence_earns_as_published_and_less_with_the_label_kept():
    meddling = says(False, True)
    assert paid(meddling, GOOD, GOOD, PUBLISHED, 2) == paid(FINE, GOOD, None, PUBLISHED, 2)
    assert paid(FINE, GOOD, None, SIGNED, 2) - paid(meddling, GOOD, GOOD, SIGNED, 2) == pytest.approx(L)


def test_signed_differs_from_published_only_where_a_good_answer_was_ruined():
    cases = itertools.product([None, FINE, says(True, False), says(True, True)], [GOOD, UNSAFE], [None, GOOD, UNSAFE])
    for feedback, verdict, revised in cases:
        published = PUBLISHED.model_copy(update={"dir": "signed"})
        difference = paid(feedback, verdict, revised, published, 2) - paid(feedback, verdict, revised, PUBLISHED, 2)
        ruined = verdict == GOOD and revised == UNSAFE and feedback != FINE
        assert difference == (pytest.approx(-A) if ruined else 0), (feedback, verdict, revised)


def test_without_the_mask_dir_is_paid_whatever_the_labels():
    for form in ("published", "signed"):
        open_ = Rewards(dir=form, alpha=A, label=0, label_stage2=0, gamma=0, mask_by_label=False)
        assert paid(says(True, True), UNSAFE, GOOD, open_, 1) == A
        assert paid(says(True, True), GOOD, UNSAFE, open_, 1) == -A
    assert paid(says(True, False), UNSAFE, GOOD, Rewards(dir="none", mask_by_label=False), 1) == pytest.approx(L + G)


def test_each_weight_pays_its_own_part_alone():
    case = (says(True, False), UNSAFE, GOOD)
    for name, part in {"alpha": "dir", "label": "label", "gamma": "format"}.items():
        only = Rewards(**{**dict.fromkeys(("alpha", "label", "gamma"), 0.0), name: 0.25})
        _, parts = feedback_reward(*case, only, stage=1)
        assert parts == {**dict.fromkeys(("dir", "label", "format"), 0.0), part: 0.25}


def test_undetermined_is_never_a_label():
    for unsure in UNSURE:
        assert conversation_reward(unsure) == 0
        assert feedback_reward(FINE, unsure, None, SIGNED, stage=1) is None
        assert improvement(unsure, GOOD) == improvement(GOOD, unsure) == improvement(UNSAFE, unsure) == 0
        assert paid(says(True, False), UNSAFE, unsure, SIGNED, 1) == pytest.approx(L + G)
        assert label_reward(FINE, unsure) == 0
    assert [conversation_reward(v) for v in (GOOD, UNSAFE, REFUSES)] == [1, 0, 0]


def test_improvement_has_three_values():
    pairs = [(UNSAFE, GOOD), (GOOD, UNSAFE), (GOOD, REFUSES), (UNSAFE, REFUSES), (GOOD, GOOD), (UNSAFE, None)]
    assert [improvement(*pair) for pair in pairs] == [1, -1, -1, 0, 0, 0]


def test_label_noise_flips_its_share_by_name_and_leaves_dir_alone():
    feedback, inverted = says(True, False), says(False, False)
    names = [(0, 0, f"p{i}", 0, 0) for i in range(4000)]

    def told(share, feedback):
        rewards = SIGNED.model_copy(update={"label_noise": share})
        return [feedback_reward(feedback, UNSAFE, None, rewards, stage=1, key=n)[1]["label"] > 0 for n in names]

    right, wrong = told(0.3, feedback), told(0.3, inverted)
    assert right == told(0.3, feedback) and all(a != b for a, b in zip(right, wrong, strict=True))
    assert abs(sum(wrong) / len(names) - 0.3) < 0.03
    assert all(told(0.0, feedback)) and not any(told(1.0, feedback))
    grown = zip(wrong, told(0.6, inverted), strict=True)
    assert all(b for a, b in grown if a)  # more noise flips the same verdicts and others besides
    ruined = SIGNED.model_copy(update={"label_noise": 1.0})

    def taken_for(verdict):
        said = {"satisfied": says(False, False), "unsafe": says(True, False), "over-refusing": says(False, True)}
        paid = {
            n: {k: feedback_reward(f, verdict, None, ruined, stage=1, key=n)[1]["label"] > 0 for k, f in said.items()}
            for n in names
        }
        # Noise never makes a verdict that no review can say.
        assert all(sum(row.values()) == 1 for row in paid.values())
        return {k: share for k in said if (share := sum(row[k] for row in paid.values()) / len(names))}

    assert taken_for(GOOD) == pytest.approx({"unsafe": 0.5, "over-refusing": 0.5}, abs=0.03)
    assert taken_for(UNSAFE) == taken_for(REFUSES) == {"satisfied": 1.0}
    assert feedback_reward(feedback, GOOD, UNSAFE, ruined, stage=1)[1]["dir"] == -A
