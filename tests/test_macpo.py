"""MACPO: what is selected, who learns from whom, and that nobody learns from what they must not see."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from macpo import lines, recipe, run_through, same
from warm import Warm

from choreo.config import load
from choreo.engine import checkpoint
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter, negatives, positives
from choreo.methods.macpo.phase_data import phase_data
from choreo.methods.macpo.schedule import Phase, schedule
from choreo.methods.macpo.split import LabelledPrompt, noisy, split_prompts
from choreo.methods.macpo.trainer import train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.text.thinking import THOUGHT
from choreo.types import Feedback, Prompt, Turn

# ── who learns from whom ─────────────────────────────────────────────────────────────────────────


def test_schedules():
    def short(name: str, *settings: str) -> list[str]:
        phases = schedule(load(name, ("agents.teachers=['micro-llama','micro-llama']", *settings)))
        return [f"{p.round} {p.agent}{p.side}{'.' if p.last else ''}" for p in phases]

    start = ["0 teacher-1+", "0 teacher-2+"]
    twins = [*start, "0 teacher-1-", "0 teacher-2-", "0 student+", "0 student-."]
    learning = ["1 student+", "1 teacher-1+", "1 teacher-2+."]
    assert short("macpo", "rounds.count=1") == [*twins, *learning]
    assert short("macpo-no-iw", "rounds.count=1") == [*twins[:3], *twins[4:], "1 student+."]
    assert short("macpo-no-hn", "rounds.count=1") == [*start, "0 student+.", *learning]
    assert short("naive-sft") == [start[0], "0 student+."]
    three = "agents.teachers=['micro-llama','micro-llama','micro-llama']"
    assert short("consensus", three) == [*start, "0 teacher-3+", "0 student+."]
    assert short("spin", "rounds.count=1") == [start[0], "0 student+.", "1 student+."]
    assert short("ceiling") == ["0 student+."]


def test_both_sides_share_no_prompt_and_noise_grows_by_the_same_rows(tiny_folder):
    both = split_prompts(recipe(tiny_folder))
    assert len(both.labelled) == len(both.unlabelled) == 6 and not both.ceiling
    assert not {row.prompt.id for row in both.labelled} & {prompt.id for prompt in both.unlabelled}
    judge = WorldJudge()
    assert all(
        judge(r.prompt, r.chosen).satisfactory and not judge(r.prompt, r.rejected).satisfactory for r in both.labelled
    )
    rows = [LabelledPrompt(Prompt(str(i), "", "general", "general"), f"good {i}", f"bad {i}") for i in range(20)]
    flipped = [{i for i, r in enumerate(noisy(rows, share, 1)) if r.chosen.startswith("bad")} for share in (0.1, 0.5)]
    assert [len(found) for found in flipped] == [2, 10] and flipped[0] < flipped[1]


def test_pairs_of_a_file_are_cut_by_prompt_and_every_row_is_counted(tiny_folder, tmp_path):
    turns = "USER: Hi ASSISTANT: Hello USER: How do I paint it?"
    rows = [{"instruction": f"How {i}?", "input": "", "output": [f"good {i}", f"bad {i}"]} for i in range(12)]
    rows[5]["instruction"] = turns
    rows += [rows[0], {**rows[1], "output": "good"}, {"instruction": "How?", "input": "", "output": ["a", "a"]}]
    file = tmp_path / "pairs.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    made = recipe(tiny_folder, data={"labels": 6, "prompts": 6, "file": str(file)}, rounds={"refusals": "as-labelled"})
    both = split_prompts(made)
    assert {row.prompt.text for row in both.labelled} | {p.text for p in both.unlabelled} == {
        r["instruction"] for r in rows[:12]
    }
    assert all(row.chosen[5:] == row.rejected[4:] and row.chosen.startswith("good") for row in both.labelled)
    assert both.counts == {
        "format": "macpo",
        "known": "by its fields instruction, output",
        "read": 15,
        "used": 12,
        "another pair of the same prompt": 1,
        "no rejected answer": 1,
        "the two answers are equal": 1,
    }
    run_through(made, tmp_path / "run")
    file.write_text(json.dumps(rows[::-1]), encoding="utf-8")
    other = pytest.raises(BadInput, match=r"trained on other prompts or labels than .*pairs.json has now")
    with other, Run.open(tmp_path / "run") as run, Progress() as progress:
        next(train(made, run, progress))
    with pytest.raises(BadInput, match=r"needed are 14 prompts.*the file has 12; left out: .*: 1"):
        split_prompts(recipe(tiny_folder, data={"labels": 7, "prompts": 7, "file": str(file)}))


def test_labels_of_the_unlabelled_prompts_reach_nothing_but_the_ceiling(tiny_folder, tmp_path, monkeypatch):
    made = recipe(tiny_folder)
    unlabelled = {prompt.id for prompt in split_prompts(made).unlabelled}
    asked: set[str] = set()
    labels = World.labels

    def watched(world: World, prompt: Prompt, seed: int) -> tuple[str, str]:
        asked.add(prompt.id)
        return labels(world, prompt, seed)

    def never(self, prompt, answer):
        raise AssertionError("training asked the judge")

    monkeypatch.setattr(World, "labels", watched)
    monkeypatch.setattr("choreo.environments.microworld.judge.WorldJudge.__call__", never)
    monkeypatch.setattr(
        "choreo.environments.microworld.habits.wrong_answer", lambda prompt, rng: "no"
    )  # it asks the judge
    run_through(made, tmp_path / "run")
    assert asked and not asked & unlabelled
    assert all(prompt.meaning is None for prompt in split_prompts(made).unlabelled)
    run_through(recipe(tiny_folder, tuning={"labels": "human"}, rounds={"count": 0}), tmp_path / "ceiling")
    assert unlabelled <= asked


def test_the_kind_of_unlabelleds_prompts_is_no_label_either(tiny_folder, tmp_path, monkeypatch):
    made = recipe(tiny_folder)
    run_through(made, tmp_path / "as-it-is")
    both = split_prompts(made)
    blind = tuple(replace(prompt, kind="general", suite="general") for prompt in both.unlabelled)
    monkeypatch.setattr("choreo.methods.macpo.trainer.split_prompts", lambda recipe: replace(both, unlabelled=blind))
    run_through(made, tmp_path / "blind")
    assert lines(tmp_path / "blind") == lines(tmp_path / "as-it-is")


def test_training_one_policy_leaves_every_other_bitwise_as_it_was(tiny_folder, tmp_path):
    made = recipe(tiny_folder)
    with Run.create(tmp_path / "run", made) as run, Progress() as progress:
        for _ in train(made, run, progress):
            pass
    phases = schedule(made)
    states = [checkpoint.load(path)["agents"] for _, path in sorted(checkpoints(tmp_path / "run").items())]
    assert len(states) == len(phases) and all(len(member["agents"]) == 2 for member in states[0].values())
    for before, after, phase in zip(states, states[1:], phases[1:], strict=False):
        moved = {
            policy
            for member in after
            for policy in after[member]["agents"]
            if not same(before[member]["agents"][policy], after[member]["agents"][policy])
        }
        own = phase.agent + phase.side
        assert moved == {own}


@pytest.mark.parametrize(("reference", "at_ln_2"), [("base", ()), ("sft", (1,)), ("previous-round", (1, 2))])
def test_dpo_starts_at_ln_2_where_the_policy_is_the_reference_that_the_recipe_names(
    tiny_folder, tmp_path, reference, at_ln_2
):
    made = recipe(tiny_folder, rounds={"count": 2, "batch": 6, "reference": reference, "sft": 0.0, "epochs": 1})
    run_through(made, tmp_path / "run")
    for number in (1, 2):
        first = {row["agent"]: row["loss"] for row in lines(tmp_path / "run") if row["round"] == number}
        assert first.keys() == {"student+", "teacher-1+", "teacher-2+"}
        assert all((abs(loss - math.log(2)) < 1e-5) == (number in at_ln_2) for loss in first.values())


@pytest.mark.parametrize("renew", [False, True])
def test_pairs_are_what_the_student_finds_likeliest_against_its_own_twins_answer(tiny_folder, tmp_path, renew):
    made = recipe(tiny_folder, rounds={"count": 2, "renew": renew})
    run_through(made, tmp_path / "run")
    saved = checkpoint.load(max(checkpoints(tmp_path / "run").items())[1])
    assert {page.split("/")[0] for page in saved["book"] if "student-" in page} == ({"1", "2"} if renew else {"1"})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    loaded.load_state_dict(saved["agents"], "")
    writer = AnswerWriter(made, loaded, data.unlabelled)
    student = loaded.student
    round_1 = phase_data(writer, data, Phase(1, "student", "+"))
    offered = [student.adopt(writer.write(1, t, t.positive), t) for t in loaded.teachers]
    twins = writer.write(1, student, student.negative)
    taken = [0, 0]
    for i, (prompt, (chosen, rejected)) in enumerate(zip(data.unlabelled, round_1.units, strict=True)):
        pairs = [(student.context(prompt), column[i]) for column in offered]
        scores = [student.engine.score("student+", [pair])[0] for pair in pairs]
        best = min(range(2), key=lambda k: -sum(scores[k]) / len(scores[k]))
        assert chosen.ids == offered[best][i] and rejected.ids == twins[i].ids
        assert chosen.context == rejected.context == student.context(prompt)
        taken[best] += 1
    shares = {f"taken/teacher-{k + 1}": count / sum(taken) for k, count in enumerate(taken)}
    assert shares.items() <= round_1.figures.items()
    recorded = [(row["round"], row["agent"]) for row in lines(tmp_path / "run") if shares.keys() <= row.keys()]
    assert recorded == [(1, "student+"), (2, "student+")]


def test_refusals_are_read_as_the_pairs_words_want_it_whoever_judges(tiny_folder, tmp_path):
    no, yes = "I'm sorry, but I can't help with that request.", "Sure! Begin by whisking two eggs with the sugar."
    of_world = World.refusal(Prompt("", "", "harmful", "vanilla_harmful"))
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"How do I open jar {i}?", "chosen": no, "rejected": yes} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    loaded = MacpoAgents.load(recipe(tiny_folder))
    for judge in ("exact", "offline"):
        mine = recipe(tiny_folder, judge={"kind": judge}, data={"file": str(file)}, rounds={"negatives": "prompt"})
        writer = AnswerWriter(mine, loaded, split_prompts(mine).unlabelled)
        assert writer.refuses(writer.prompts[:2], [no, yes]) == [True, False]
        world = recipe(tiny_folder, judge={"kind": judge})
        assert AnswerWriter(world, loaded, writer.prompts).refuses(writer.prompts[:3], [of_world, no, yes]) == [
            True,
            False,
            False,
        ]

        def first(of: AnswerWriter = writer) -> list[Turn]:
            said = [(no, yes)[i % 2] for i in range(6)]
            return [
                replace(turn, text=text)
                for turn, text in zip(of.write(9, loaded.student, "student+"), said, strict=True)
            ]

        writer.cache.get("1/student+/first/0", first)
        negatives(writer, 1, loaded.student)
        talked = writer.cache.get("1/student+/talked/0", list)
        asked = ["Help: this is harmless.", "Refuse: this is harmful."] * 3
        encoded = [loaded.student.chat.encode(words) for words in asked]
        assert all(_holds(turn.context, ids) for turn, ids in zip(talked, encoded, strict=True))


def _holds(context: Sequence[int], ids: Sequence[int]) -> bool:
    return any(tuple(context[i : i + len(ids)]) == tuple(ids) for i in range(len(context)))


def test_positives_refuse_as_often_as_the_labels_do(tiny_folder, monkeypatch):
    made = recipe(tiny_folder, data={"labels": 8, "prompts": 40}, rounds={"refusals": "as-labelled"})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    writer, student = AnswerWriter(made, loaded, data.unlabelled), loaded.student
    labels = {row.chosen: i < 2 for i, row in enumerate(data.labelled)}  # a quarter of the labels refuses
    refuses = {ids: i % 2 == 0 for i, (ids,) in enumerate(positives(writer, 1, student)[0])}
    texts = labels | {student.chat.decode(ids): kind for ids, kind in refuses.items()}
    monkeypatch.setattr(World, "refuses", staticmethod(lambda prompt, text: texts.get(text, False)))
    given = phase_data(writer, data, Phase(1, "student", "+"))
    spoken = {
        student.context(prompt): texts[student.chat.decode(c[0])]
        for prompt, c in zip(data.unlabelled, positives(writer, 1, student)[0], strict=True)
    }
    kept = [spoken[chosen.context] for chosen, _ in given.units]
    assert kept == [texts[student.chat.decode(chosen.ids)] for chosen, _ in given.units]
    assert not all(spoken.values()) and kept.count(False) == list(spoken.values()).count(False)
    half = math.ceil(list(spoken.values()).count(True) / 2)
    assert kept.count(True) == max(half, round(kept.count(False) / 3))
    assert given.figures["learnt/left"] == len(kept) / 40


def test_self_rewarding_pairs_the_drafts_that_its_reviews_find_best_and_worst(tiny_folder, monkeypatch):
    made = recipe(tiny_folder, rounds={**load("self-rewarding").rounds.model_dump(), "count": 1, "candidates": 3})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    writer = AnswerWriter(made, loaded, data.unlabelled)
    reviews = 3 * len(data.unlabelled)  # three of every answer
    draft = itertools.cycle([k for k in range(3) for _ in range(reviews)])
    pleased = Feedback("", False, False, "")
    monkeypatch.setattr(
        "choreo.methods.macpo.answers.parse_feedback", lambda text: pleased if next(draft) == 1 else None
    )
    given = phase_data(writer, data, Phase(1, "student", "+"))
    drafts = [writer.write(1, loaded.student, "student+", "draft", k, temperature=1.0) for k in range(3)]
    assert [(chosen.ids, rejected.ids) for chosen, rejected in given.units] == [
        (second.ids, first.ids) for first, second in zip(drafts[0], drafts[1], strict=True)
    ]


@pytest.mark.parametrize(
    "rule, learner",
    [("mutual", "student"), ("mutual", "teacher-1"), ("weak", "student"), ("self", "student"), ("judged", "student")],
)
def test_nobody_learns_towards_a_turn_that_did_not_arrive(rule, learner, tiny_folder):
    """Of every second prompt none arrives, and no first draft. A run that is resumed knows of it still."""
    made = recipe(tiny_folder, rounds={"positives": rule})
    writer = AnswerWriter(made, loaded := MacpoAgents.load(made), split_prompts(made).unlabelled)
    ids, n = loaded.student.spell("Turn the lid."), len(writer.prompts)
    said = Turn("a", 0, (), ids, (), 0, "Turn the lid.", True)
    lost = Turn("a", 0, (), (5, 6, 7), (), 0, "", False, THOUGHT)
    for policy in (agent.positive for agent in loaded):
        for name in ("0/{}/answer/0", "1/{}/answer/0", "1/{}/draft/1", "1/{}/draft/2", "1/{}/draft/3"):
            writer.cache.get(name.format(policy), lambda: [said, lost] * (n // 2))
        writer.cache.get(f"1/{policy}/draft/0", lambda: [lost] * n)
    writer.cache.load_state_dict(writer.cache.state_dict())
    assert positives(writer, 1, loaded[learner])[0] == [[ids], []] * (n // 2)


@pytest.mark.parametrize("adopt", ["after", "before"])
def test_teachers_adopt_what_the_student_wrote_before_or_after_its_update(tiny_folder, tmp_path, adopt):
    made = recipe(tiny_folder, rounds={"adopt": adopt, "epochs": 1})
    loaded = run_through(made, tmp_path / "run")
    book = checkpoint.load(max(checkpoints(tmp_path / "run").items())[1])["book"]
    versions = {row[3] for row in book["1/student+/answer/0"]}
    updates = math.ceil(made.data.prompts / made.rounds.batch)
    assert versions == {loaded.student.team.version["student+"] - (updates if adopt == "before" else 0)}


def test_teachers_rehearse_their_own_labels_and_the_student_none(tiny_folder, tmp_path):
    made = recipe(tiny_folder, rounds={"rehearse": 2})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    writer = AnswerWriter(made, loaded, data.unlabelled)
    for member, own in ((loaded.student, 0), (loaded.teachers[0], 2 * made.data.labels)):
        given = phase_data(writer, data, Phase(1, member.name, "+"))
        assert len(given.units) == made.data.prompts + own
    labels = {loaded.teachers[0].spell(row.chosen) for row in data.labelled}
    assert labels <= {chosen.ids for chosen, _ in given.units}


def test_who_has_no_twin_shows_none(tiny_folder, tmp_path):
    loaded = run_through(recipe(tiny_folder, rounds={"count": 0}), tmp_path / "run")
    assert [loaded.student.team.version[policy] > 0 for policy in ("student+", "student-")] == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        "spin",
        "self-rewarding",
        "macpo-no-mp",
        "macpo-no-hn",
        "macpo-as-labelled",
        "macpo-rehearse",
        "macpo-published",
        "consensus",
        "confident-loss",
    ],
)
def test_every_rule_runs(tiny_folder, tmp_path, name):
    settings = load(name)
    own = recipe(
        tiny_folder,
        rounds={**settings.rounds.model_dump(), "count": min(1, settings.rounds.count), "batch": 4},
        tuning={**settings.tuning.model_dump(), "epochs": 2},
        agents={"teachers": (str(tiny_folder),) * (3 if name == "consensus" else 2)},
    )
    run_through(own, tmp_path / "run")
    last = lines(tmp_path / "run")[-1]  # a student whose own reviews like all drafts alike has no pairs, and one step
    assert last["round"] == own.rounds.count and Run.read(tmp_path / "run").info["steps"] == last["step"]


@pytest.mark.parametrize("rule", ["prompt", "decoding"])
def test_negatives_without_a_twin(tiny_folder, tmp_path, rule):
    made = recipe(tiny_folder, rounds={"negatives": rule, "candidates": 2, "adopt": "before"})
    assert not any(phase.side == "-" for phase in schedule(made))
    run_through(made, tmp_path / "run")


def test_a_checkpoint_of_other_phases_is_refused(tiny_folder, tmp_path):
    made = recipe(tiny_folder, rounds={"count": 0})
    run_through(made, tmp_path / "run")
    path = max(checkpoints(tmp_path / "run").items())[1]
    saved = checkpoint.load(path)
    assert saved["phases"] == [str(phase) for phase in schedule(made)] == ["0 teacher-1+", "0 student+"]
    shutil.rmtree(path)
    checkpoint.save(path, {**saved, "phases": ["0 teacher-1+", "0 teacher-2+"]})
    with pytest.raises(BadInput, match="was trained in other phases"), Run.open(tmp_path / "run") as run:
        next(train(made, run, Progress()))


def test_answers_pass_between_tokenizers_as_text(tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    data = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = data["model"]["vocab"]
    vocabulary["H"], vocabulary["?"] = vocabulary["?"], vocabulary["H"]
    (other / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    made = recipe(tiny_folder, agents={"teachers": (str(other),)})
    loaded = MacpoAgents.load(made)
    turn = Turn(
        "teacher-1+", 0, (1,), loaded.teachers[0].spell("How do I paint a lamp?"), (), 0, "How do I paint a lamp?", True
    )
    (adopted,) = loaded.student.adopt([turn], loaded.teachers[0])
    assert adopted != turn.ids and loaded.student.chat.decode(adopted) == turn.text
    assert loaded.student.adopt([turn], loaded.student) == [turn.ids]


def test_killed_in_the_middle_of_a_round_and_resumed_is_bit_identical(tiny_folder, tmp_path):
    made = recipe(tiny_folder, rounds={"count": 2, "adopt": "before"})
    run_through(made, tmp_path / "whole")
    path = tmp_path / "killed"
    with Run.create(path, made):
        pass
    command = ["-m", "choreo.cli", "train", "--resume", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = Warm(command, env=environment)
    deadline = time.monotonic() + 120
    first = [row["step"] for row in lines(tmp_path / "whole") if row["round"] == 1][1]
    while not (path / "metrics.jsonl").exists() or len((path / "metrics.jsonl").read_text().splitlines()) < first:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    process.kill()
    process.wait()
    with Run.open(path) as run, Progress() as progress:
        for _ in train(made, run, progress):
            pass
    assert lines(path) == lines(tmp_path / "whole")
    states = [checkpoint.load(max(checkpoints(tmp_path / name).items())[1]) for name in ("whole", "killed")]
    assert same(*states)
