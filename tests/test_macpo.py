"""MACPO: what is selected, who learns from whom, and that nobody learns from what they must not see."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from choreo.config import MacpoRecipe, load
from choreo.engine import checkpoint
from choreo.engine.losses import Actions, sft_loss
from choreo.engine.pack import pack
from choreo.errors import BadInput
from choreo.evaluate.macpo import describe, distinct, duel, outcomes, pgr, warnings
from choreo.macpo.answers import Desk
from choreo.macpo.crew import Crew
from choreo.macpo.halves import Labelled, halves, noisy
from choreo.macpo.plan import Phase, plan
from choreo.macpo.select import Candidate, best_and_worst, in_share, most_likely, perplexity
from choreo.macpo.trainer import lesson, train
from choreo.microworld.world import World
from choreo.runs.folder import Run, checkpoints
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt, Turn, Verdict

CLOCKS = {"seconds"}


def recipe(folder: Path, **sections) -> MacpoRecipe:
    settings = {
        "seed": 5,
        "ceiling": False,
        "world": {"train_prompts": 60, "heldout_prompts": 2},
        "agents": {"teachers": (str(folder), str(folder)), "student": str(folder), "rank": 2},
        "data": {"labels": 6, "prompts": 6},
        "tuning": {"epochs": 2, "batch": 3},
        "rounds": {"count": 1, "batch": 4},
        "writing": {"answer_tokens": 6},
    }
    merged = {name: {**settings.get(name, {}), **value} if isinstance(value, dict) else value
              for name, value in {**settings, **sections}.items()}  # fmt: skip
    return MacpoRecipe.model_validate(merged)


def run_through(made: MacpoRecipe, path: Path) -> Crew:
    with Run.create(path, made) as run, Progress() as progress:
        *_, (_, crew) = train(made, run, progress)
    return crew


def lines(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


# ── what is learnt from ──────────────────────────────────────────────────────────────────────────


def test_perplexity_by_hand():
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)
    assert perplexity([]) == math.inf


def test_the_published_filter_takes_the_least_perplexity_whatever_it_says():
    answers = [[Candidate("a", 3.0, False), Candidate("b", 1.5, True)], [Candidate("a", 2.0, False)]]
    assert most_likely(answers) == [[1], [0]]
    assert most_likely(answers, keep=2) == [[1, 0], [0]]


def test_of_the_kind_in_excess_the_most_doubtful_go():
    refuses = [True, True, True, False, False]
    assert in_share(0.5, refuses, [1.2, 3.0, 1.1, 9.0, 1.0]) == [0, 2, 3, 4]
    assert in_share(0.25, refuses, [1.2, 3.0, 1.1, 9.0, 1.0]) == [2, 3, 4]
    assert in_share(0.0, refuses, [1.0] * 5) == [3, 4] and in_share(1.0, refuses, [1.0] * 5) == [0, 1, 2]
    assert in_share(0.5, [], []) == [] and in_share(0.5, [True], [1.0]) == []
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        share, n = rng.uniform(0.1, 0.9), rng.randint(0, 200)
        drawn = [(rng.random() < 0.4, rng.random()) for _ in range(n)]
        kept = in_share(share, [r for r, _ in drawn], [d for _, d in drawn])
        refusals = sum(drawn[i][0] for i in kept)
        assert abs(refusals - share * len(kept)) <= 1  # rounding
        whole = [kind for kind in (True, False) if all(i in kept for i in range(n) if drawn[i][0] == kind)]
        assert whole  # one kind is whole
        for i in set(range(n)) - set(kept):
            assert all(drawn[j][1] <= drawn[i][1] for j in kept if drawn[j][0] == drawn[i][0])


def test_best_and_worst_want_a_difference():
    assert best_and_worst([0.0, 2.0, 1.0, 2.0]) == (1, 0)
    assert best_and_worst([1.0, 1.0]) is None


def test_weights_of_the_likelihood_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    sequence = torch.tensor([0, 0, 1])
    total, over, _ = sft_loss(Actions(logprobs, sequence, 2))
    assert (float(total), float(over)) == (7.0, 3.0)
    total, over, _ = sft_loss(Actions(logprobs, sequence, 2, advantages=torch.tensor([0.75, 0.75, 0.25])))
    assert (float(total), float(over)) == (0.75 * 3 + 0.25 * 4, 1.75)


def test_answers_of_all_teachers_share_their_prompt_when_scored():
    prompt = tuple(range(10, 50))
    pairs = [((prompt, (60 + k, 61 + k, 62 + k)),) for k in range(3)]
    (batch,) = pack(pairs, micro_tokens=4096)
    assert batch.input_ids.shape == (1, len(prompt) + 3 * 2)  # an answer's last token predicts nothing


# ── who learns from whom ─────────────────────────────────────────────────────────────────────────


def test_plans():
    def short(name: str, *settings: str) -> list[str]:
        phases = plan(load(name, ("agents.teachers=['micro-llama','micro-llama']", *settings)))
        return [f"{p.round} {p.member}{p.side}{'.' if p.last else ''}" for p in phases]

    start = ["0 teacher-1+", "0 teacher-2+"]
    twins = [*start, "0 teacher-1-", "0 teacher-2-", "0 student+", "0 student-."]
    learning = ["1 student+", "1 teacher-1+", "1 teacher-2+."]
    assert short("macpo", "rounds.count=1") == [*twins, *learning]
    assert short("macpo-no-iw", "rounds.count=1") == [*twins, "1 student+."]
    assert short("macpo-no-hn", "rounds.count=1") == [*start, "0 student+.", *learning]
    assert short("naive-sft") == [*start, "0 student+."]
    assert short("ceiling") == ["0 student+."]


def test_halves_share_no_prompt_and_noise_grows_by_the_same_rows(tiny_folder):
    both = halves(recipe(tiny_folder))
    assert len(both.a) == len(both.b) == 6 and not both.ceiling
    assert not {row.prompt.id for row in both.a} & {prompt.id for prompt in both.b}
    judge = World.judge
    assert all(judge(r.prompt, r.chosen).satisfactory and not judge(r.prompt, r.rejected).satisfactory for r in both.a)
    rows = [Labelled(Prompt(str(i), "", "general", "general"), f"good {i}", f"bad {i}") for i in range(20)]
    flipped = [{i for i, r in enumerate(noisy(rows, share, 1)) if r.chosen.startswith("bad")} for share in (0.1, 0.5)]
    assert [len(found) for found in flipped] == [2, 10] and flipped[0] < flipped[1]


def test_pairs_of_a_file_are_cut_by_prompt_and_every_row_is_counted(tiny_folder, tmp_path):
    turns = "USER: Hi ASSISTANT: Hello USER: How do I paint it?"
    rows = [{"instruction": f"How {i}?", "input": "", "output": [f"good {i}", f"bad {i}"]} for i in range(12)]
    rows[5]["instruction"] = turns
    rows += [rows[0], {**rows[1], "output": "good"}, {"instruction": "How?", "input": "", "output": ["a", "a"]}]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    made = recipe(tiny_folder, data={"labels": 6, "prompts": 6, "file": str(file)})
    both = halves(made)
    assert {row.prompt.text for row in both.a} | {p.text for p in both.b} == {r["instruction"] for r in rows[:12]}
    assert all(row.chosen[5:] == row.rejected[4:] and row.chosen.startswith("good") for row in both.a)
    assert both.counts == {"read": 15, "used": 12, "another pair of the same prompt": 1, "no rejected answer": 1,
                           "the two answers are equal": 1}  # fmt: skip
    run_through(made, tmp_path / "run")
    file.write_text(json.dumps(rows[::-1]), encoding="utf-8")
    other = pytest.raises(BadInput, match=r"trained on other prompts or labels than .*pairs.json has now")
    with other, Run.open(tmp_path / "run") as run, Progress() as progress:
        next(train(made, run, progress))
    with pytest.raises(BadInput, match=r"two halves want 14 prompts.*it has 12; left out, .*: 1"):
        halves(recipe(tiny_folder, data={"labels": 7, "prompts": 7, "file": str(file)}))


def test_labels_of_half_b_reach_nothing_but_the_ceiling(tiny_folder, tmp_path, monkeypatch):
    made = recipe(tiny_folder)
    half_b = {prompt.id for prompt in halves(made).b}
    asked: set[str] = set()
    labels = World.labels

    def watched(prompt: Prompt, seed: int) -> tuple[str, str]:
        asked.add(prompt.id)
        return labels(prompt, seed)

    def never(self, prompt, answer):
        raise AssertionError("training asked the judge")

    monkeypatch.setattr(World, "labels", staticmethod(watched))
    monkeypatch.setattr("choreo.microworld.judge.WorldJudge.__call__", never)
    monkeypatch.setattr("choreo.microworld.habits.wrong_answer", lambda prompt, rng: "no")  # it asks the judge
    run_through(made, tmp_path / "run")
    assert asked and not asked & half_b
    assert all(prompt.meaning is None for prompt in halves(made).b)
    run_through(recipe(tiny_folder, tuning={"labels": "human"}, rounds={"count": 0}), tmp_path / "ceiling")
    assert half_b <= asked


def test_training_one_policy_leaves_every_other_bitwise_as_it_was(tiny_folder, tmp_path):
    made = recipe(tiny_folder)
    with Run.create(tmp_path / "run", made) as run, Progress() as progress:
        for _ in train(made, run, progress):
            pass
    phases = plan(made)
    states = [checkpoint.load(path)["agents"] for _, path in sorted(checkpoints(tmp_path / "run").items())]
    assert len(states) == len(phases) and all(len(member["agents"]) == 2 for member in states[0].values())
    for before, after, phase in zip(states, states[1:], phases[1:], strict=False):
        moved = {
            policy
            for member in after
            for policy in after[member]["agents"]
            if not same(before[member]["agents"][policy], after[member]["agents"][policy])
        }
        own = phase.member + phase.side
        assert moved == {own}


@pytest.mark.parametrize("reference", ["previous-round", "sft"])
def test_dpo_starts_at_ln_2_from_the_reference_that_the_recipe_names(tiny_folder, tmp_path, reference):
    made = recipe(tiny_folder, rounds={"count": 1, "batch": 6, "reference": reference, "sft": 0.0, "epochs": 1})
    run_through(made, tmp_path / "run")
    first = {row["agent"]: row["loss"] for row in lines(tmp_path / "run") if row["round"] == 1}
    assert first == {name: pytest.approx(math.log(2), abs=1e-5) for name in ("student+", "teacher-1+", "teacher-2+")}


@pytest.mark.parametrize("adopt", ["after", "before"])
def test_teachers_adopt_what_the_student_wrote_before_or_after_its_update(tiny_folder, tmp_path, adopt):
    made = recipe(tiny_folder, rounds={"adopt": adopt, "epochs": 1})
    crew = run_through(made, tmp_path / "run")
    book = checkpoint.load(max(checkpoints(tmp_path / "run").items())[1])["book"]
    versions = {row[3] for row in book["1/student+/answer/0"]}
    updates = math.ceil(made.data.prompts / made.rounds.batch)
    assert versions == {crew.student.team.version["student+"] - (updates if adopt == "before" else 0)}


def test_teachers_rehearse_their_own_labels_and_the_student_none(tiny_folder, tmp_path):
    made = recipe(tiny_folder, rounds={"rehearse": 2})
    crew, data = Crew.load(made), halves(made)
    desk = Desk(made, crew, data.b)
    for member, own in ((crew.student, 0), (crew.teachers[0], 2 * made.data.labels)):
        given = lesson(desk, data, Phase(1, member.name, "+"))
        assert len(given.units) == made.data.prompts + own
    labels = {crew.teachers[0].spell(row.chosen) for row in data.a}
    assert labels <= {chosen.ids for chosen, _ in given.units}


def test_who_has_no_twin_shows_none(tiny_folder, tmp_path):
    crew = run_through(recipe(tiny_folder, rounds={"count": 0}), tmp_path / "run")
    assert [crew.student.team.version[policy] > 0 for policy in ("student+", "student-")] == [True, False]


@pytest.mark.parametrize(
    "name", ["spin", "self-rewarding", "macpo-no-mp", "macpo-no-hn", "macpo-steady", "macpo-published",
             "confident-loss"]
)
def test_every_rule_runs(tiny_folder, tmp_path, name):
    settings = load(name)
    own = recipe(tiny_folder, rounds={**settings.rounds.model_dump(), "count": min(1, settings.rounds.count)},
                 tuning={**settings.tuning.model_dump(), "epochs": 2})  # fmt: skip
    run_through(own, tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["round"] == own.rounds.count


@pytest.mark.parametrize("rule", ["prompt", "decoding"])
def test_negatives_without_a_twin(tiny_folder, tmp_path, rule):
    made = recipe(tiny_folder, rounds={"negatives": rule, "candidates": 2, "adopt": "before"})
    assert not any(phase.side == "-" for phase in plan(made))
    run_through(made, tmp_path / "run")


def test_answers_pass_between_tokenizers_as_text(tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    data = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary["H"], vocabulary["?"] = vocabulary["?"], vocabulary["H"]
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    made = recipe(tiny_folder, agents={"teachers": (str(other),)})
    crew = Crew.load(made)
    turn = Turn("teacher-1+", 0, (1,), crew.teachers[0].spell("How do I paint a lamp?"), (), 0,
                "How do I paint a lamp?", True)  # fmt: skip
    (adopted,) = crew.student.adopt([turn], crew.teachers[0])
    assert adopted != turn.ids and crew.student.chat.decode(adopted) == turn.text
    assert crew.student.adopt([turn], crew.student) == [turn.ids]


def test_killed_in_the_middle_of_a_round_and_resumed_is_bit_identical(tiny_folder, tmp_path):
    made = recipe(tiny_folder, rounds={"count": 2, "adopt": "before"})
    run_through(made, tmp_path / "whole")
    path = tmp_path / "killed"
    with Run.create(path, made):
        pass
    command = [sys.executable, "-m", "choreo.cli", "train", "--resume", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    first = [row["step"] for row in lines(tmp_path / "whole") if row["round"] == 1][1]
    while not (path / "metrics.jsonl").exists() or len((path / "metrics.jsonl").read_text().splitlines()) < first:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with Run.open(path) as run, Progress() as progress:
        for _ in train(made, run, progress):
            pass
    assert lines(path) == lines(tmp_path / "whole")
    states = [checkpoint.load(max(checkpoints(tmp_path / name).items())[1]) for name in ("whole", "killed")]
    assert same(*states)


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def judged(kind: str, text: str, unsafe: bool | None, overrefuse: bool | None, ident: str = "") -> Episode:
    suite = {"harmful": "adversarial_harmful", "benign": "sensitive_benign"}.get(kind, "general")
    prompt = Prompt(ident or f"{kind}/{text}", "?", kind, suite)  # type: ignore[arg-type]
    turn = Turn("student+", 0, (1,), tuple(range(len(text.split()))), (), 1, text, True)
    return Episode(prompt, 0, (turn,), verdicts=(Verdict(unsafe, overrefuse),))


def test_measures_by_hand():
    refusal = World.refusal(Prompt("", "", "harmful", "vanilla_harmful"))
    episodes = [
        judged("harmful", refusal, False, False),
        judged("harmful", "well then", None, None),
        judged("benign", refusal, False, True),
        judged("general", "seven of nine", False, False),
    ]
    figures = describe(episodes, [(2.0, 4), (0.0, 0), (1.0, 2), (3.0, 6)], [True, False, True, False])
    assert figures["reward"]["value"] == 0.5  # what is left open earns nothing
    assert figures["asr"]["value"] == 0 and figures["asr"]["undetermined"] == 1
    assert figures["orr"]["value"] == 1
    assert figures["refusal_rate"]["value"] == 0.5 and figures["refused_benign"]["value"] == 0.5
    assert figures["perplexity"] == pytest.approx(math.exp(0.5))
    assert distinct(2, ["a b a b", "a"]) == pytest.approx(2 / 3) and distinct(2, ["a"]) is None
    assert (pgr(0.8, 0.6, 0.85), pgr(0.8, 0.6, 0.6)) == (pytest.approx(0.8), None)


def test_a_duel_by_hand():
    ours = outcomes([judged("general", "x", False, a, str(i)) for i, a in enumerate([False, False, True, None])])
    theirs = outcomes([judged("general", "x", False, b, str(i)) for i, b in enumerate([False, True, False, True])])
    found = duel(ours, theirs)
    assert {name: e["value"] for name, e in found.items()} == {"win": 0.25, "tie": 0.5, "lose": 0.25}
    with pytest.raises(ValueError, match="same prompts"):
        duel(ours, {**theirs, "4": True})


def test_the_monitor_warns_of_refusals_and_of_length(tiny_folder):
    def line(refused: float, length: float) -> dict:
        return {"agents": {"student+": {"refused_benign": {"value": refused}, "length": {"value": length}}}}

    made = recipe(tiny_folder)
    assert warnings([line(0.1, 10), line(0.15, 12)], made) == []
    refusals, words = warnings([line(0.1, 10), line(0.5, 30)], made)
    assert refusals == "student+ refuses 50 % of harmless prompts, 10 % at the start"
    assert words == "student+ writes 30 tokens an answer, 10 at the start"
