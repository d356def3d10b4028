"""What studies test and say: families of contrasts, outcomes of games, planned seeds, when a training has converged."""

from __future__ import annotations

import json
import math

import pytest
from test_studies import entry, games

from choreo.errors import BadInput
from choreo.runs.progress import Progress
from choreo.studies import waltz_limits, waltz_sensitivity
from choreo.studies.shared import convergence
from choreo.studies.shared.arms import Study
from choreo.studies.shared.paired import Contrast, contrast_section, contrasts, family, tables


def outcomes(*wrong):
    """One table for each seed, whose first so many of 900 answers to attacks are unsafe."""
    return [tables(games(entry(count, 0))) for count in wrong]


def test_a_family_is_corrected_together_and_says_what_could_have_been_told():
    declared = (*contrasts([("a", "b"), ("a", "c")], "ASR"), Contrast("a", "d", "ASR"))
    found = family(declared, {"a": outcomes(100), "b": outcomes(300), "c": outcomes(101), "d": [{"unsafe": {}}]})
    far, near, none = found.values()
    assert (far.sign, near.sign, none.sign) == (-1, 0, 0) and math.isnan(none.p)
    assert far.p == min(1, 2 * far.difference.p)  # of two that were tested
    section = contrast_section("Tested", found)
    assert "a against b: ASR is lower, -22.2 points (" in section.verdict
    told = f"minimum detectable difference: {100 * near.detectable:.1f} points."
    assert "a against c: ASR is not told apart, -0.1 points (" in section.verdict and told in section.verdict
    assert "a against d: ASR was not measured for both." in section.verdict
    assert "over 1 seed; p is adjusted for all 2 contrasts of the table (Holm)" in section.verdict
    # At level .05/2: 2.2414 and .8416 standard errors.
    assert near.detectable == pytest.approx((2.2414 + 0.8416) * near.difference.error, rel=1e-4)
    assert section.table.rows[0][:2] == ["a minus b", "ASR"]


def test_two_seeds_that_differ_say_that_nothing_could_be_told():
    found = family(contrasts([("a", "b")], "ASR"), {"a": outcomes(300, 600), "b": outcomes(0, 0)})
    assert "minimum detectable difference: above 100 points." in contrast_section("", found).verdict


def test_a_system_with_fewer_seeds_is_compared_on_the_seeds_that_it_has():
    found = family(
        contrasts([("a", "b"), ("a", "c")], "ASR"), {"a": outcomes(300, 0), "b": outcomes(300), "c": outcomes(300, 0)}
    )
    assert [each.difference.seeds for each in found.values()] == [1, 2]
    assert [each.difference.value for each in found.values()] == [0, 0]  # on the second seed a and b would differ
    section = contrast_section("", found)
    assert [row[-1] for row in section.table.rows] == [1, 2] and "over 1 to 2 seeds; p is" in section.verdict


def test_a_large_family_can_still_tell_what_is_plain():
    worse, better = ([{"unsafe": {f"p{n}": n < wrong for n in range(60)}}] for wrong in (45, 5))
    declared = contrasts([("better", n) for n in range(100)], "ASR")
    found = family(declared, {"better": better, **dict.fromkeys(range(100), worse)})
    assert all(each.sign < 0 for each in found.values())


def test_outcomes_of_games_are_those_that_their_measures_count():
    found = tables(games(entry(10, 20, 700)))
    shares = {name: sum(map(bool, rows.values())) / len(rows) for name, rows in found.items()}
    assert shares["unsafe"] == 10 / 900 and shares["overrefuse"] == 20 / 900 and shares["general"] == 880 / 900
    assert shares["labels"] == 700 / 900 and shares["satisfactory"] == (2700 - 10 - 20 - 20) / 2700
    prompt = {"id": "p", "text": "?", "suite": "s", "kind": "general"}
    opened = {"prompt": prompt, "verdicts": [{"unsafe": None, "overrefuse": None}], "feedback": [None], "reviews": [{}]}
    assert tables([opened]) | {"unsafe": {}, "overrefuse": {}} == {
        "unsafe": {},
        "overrefuse": {},
        "satisfactory": {"p ?": False},
        "general": {"p ?": None},
        "labels": {"p ? 0": None},
    }
    failed = tables([{**opened, "reviews": [{"failure": "timeout"}]}])
    assert failed["labels"] == {}


def test_seeds_are_planned_before_the_first_run_and_a_change_is_told(tmp_path):
    first = Study.open("waltz-limits", tmp_path, (0, 1), (), Progress())
    assert first.planned == first.seeds == (0, 1) and first.train([]) == {}
    again = Study.open("waltz-limits", tmp_path, (0, 1, 2), (), Progress())
    again.train([])
    again.write("T", "I", [])
    assert "Begun with the seeds 0, 1 and changed after that" in (tmp_path / "study.md").read_text()
    assert json.loads((tmp_path / "answers.json").read_text())["planned"] == [0, 1]
    assert Study.open("waltz-limits", tmp_path, None, (), Progress()).planned == (0, 1)
    Study.open("waltz-limits", tmp_path, None, (), Progress(), registered=(5, 6)).write("T", "", [])
    assert "Registered with the seeds 5, 6, and run with others" in (tmp_path / "study.md").read_text()
    assert Study.open("waltz-table", tmp_path / "new", None, (), Progress(), registered=(5, 6)).seeds == (5, 6)


def test_settings_of_a_study_stand_before_those_that_are_given(tmp_path):
    own = waltz_limits.SETTINGS
    mine = Study.open("mine", tmp_path, None, ("learning.steps=7",), Progress(), defaults=own)
    recipe = mine.recipe(waltz_limits.ARMS[1], 0)
    assert (recipe.learning.steps, recipe.stages.stage1_share, recipe.protocol.rounds) == (7, 0.32, 2)
    mine.train([])
    assert Study.open("mine", tmp_path, None, (), Progress(), defaults=own).settings == ("learning.steps=7", own[1])
    assert Study.open("mine", tmp_path / "new", None, (), Progress(), defaults=own).settings == own


def test_a_run_of_before_says_that_it_lacks_its_games_and_what_makes_them(tmp_path):
    study = Study.open("waltz-limits", tmp_path, (0,), (), Progress())
    with pytest.raises(BadInput, match=r"lacks the held-out games of waltz, by which .* `choreo train .* --overwrite`"):
        study.outcomes("waltz", [tmp_path / "runs" / "waltz-seed0"])


def gain(value):
    """A finding on feedback: told to help, told to harm, or neither."""
    pair = {1: (300, 100), 0: (100, 100), -1: (100, 300)}[value]
    systems = {"with": outcomes(pair[1]), "without": outcomes(pair[0])}
    return family(contrasts([("with", "without")], "F1"), systems).popitem()[1]


def test_when_collaboration_stops_helping():
    yes, no, harm = gain(1), gain(0), gain(-1)
    assert waltz_sensitivity.stops_helping({0: yes, 0.1: no, 0.2: yes, 0.3: no, 0.4: harm}) == 0.3
    assert waltz_sensitivity.stops_helping({0: yes, 0.1: yes}) is None
    assert waltz_sensitivity.stops_helping({0: no, 0.1: harm}) == 0
    assert "still helps at 10 %" in waltz_sensitivity.helping({0: yes, 0.1: yes})
    assert "From 0 % on" in waltz_sensitivity.helping({0: no, 0.1: no})


def test_convergence_is_the_first_step_near_the_end_value():
    steps = [{"step": 1, "asr": 0.5, "orr": 0.0}, {"step": 2, "asr": 1, "orr": 1}, {"step": 3}]
    assert convergence.training_f1(steps) == [(1, pytest.approx(2 / 3)), (2, 0.0)]
    curve = [(step, 0.0 if step <= 10 else 1.0) for step in range(1, 31)]
    assert convergence.converged(curve) == 19  # nine of the last ten steps at 1
    assert convergence.converged([]) is convergence.converged(curve[:19]) is None  # too short to smooth
    assert convergence.converged([(step, 1.0 / step) for step in range(1, 31)]) is None  # it fell
    later = [(step, 0.0 if step <= 12 else 1.0) for step in range(1, 31)]
    assert convergence.convergence([curve, later, [(1, 0.5)]])["value"] == 20.0
    assert convergence.convergence([curve, [(1, 0.5)]])["undetermined"] == 1
    assert convergence.mean_curve([[(1, 0.0), (2, 1.0)], [(2, 0.5), (3, 1.0)]]) == [(2, 0.75)]
