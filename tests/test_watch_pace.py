"""How far a run is and how long it still takes, as the row of `choreo watch` has it."""

from __future__ import annotations

from choreo.methods.attacker.recipe import AttackerRecipe
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.runs.folder import Run
from choreo.watch.figures import WatchedRun


def seen(run):
    watched = WatchedRun(1, run.path, "mine")
    watched.look()
    return watched.row


def test_a_round_of_macpo_takes_as_long_as_the_one_before(tmp_path):
    """Before a whole round is known, the seconds of the cheaper start give what is left at the least."""
    with Run.create(tmp_path / "mine", MacpoRecipe()) as run:  # three rounds
        run.note(steps=8)
        took = ((0, 1.0), (0, 3.0), (1, 20.0), (1, 4.0), (2, 20.0), (2, 4.0), (3, 20.0), (3, 4.0))
        expected = [
            ("usually more than", 7 * 1.0),
            ("usually more than", 6 * 2.0),  # nothing has been measured yet
            ("usually more than", 5 * 8.0 + 3 * 2.5),
            ("usually more than", 4 * 7.0 + 3 * 2.5),
            ("about", 4.0 + 24.0 + 2 * 2.5),
            ("about", 24.0 + 2 * 2.5),
            ("about", 4.0 + 2.5),
            ("", None),
        ]
        for step, ((number, seconds), (bound, left)) in enumerate(zip(took, expected, strict=True), 1):
            run.log(step, {"round": number, "agent": "student+", "seconds": seconds})
            row = seen(run)
            assert (row["step"], row["steps"], row["bound"], row["left"]) == (step, 8, bound, left)
            if step == 2:
                run.note(measuring=2.5)
        assert row["doing"] == "measuring on held-out prompts"
    assert seen(run)["left"] is None, "nobody works on it"


def test_steps_of_a_warm_start_are_cheaper_than_those_after_it(tmp_path):
    with Run.create(tmp_path / "mine", AttackerRecipe(warmup_steps=2, steps=2)) as run:
        run.note(steps=4)
        for step, bound in ((1, "usually more than"), (2, "about")):
            run.log(step, {"seconds": 3.0})
            row = seen(run)
            assert (row["bound"], row["left"]) == (bound, 3.0 * (4 - step))
