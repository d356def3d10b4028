"""Conversations of several turns: read from files, kept apart, shown, rated, measured by turn, and the microworld's."""

from __future__ import annotations

import itertools
import json
import random
from collections import defaultdict

import pytest
from arena import write_rows
from data_rows import END, MADE, TALK, write
from macpo import recipe as macpo_recipe
from macpo import run_through

from choreo import config
from choreo.arena.export import export_arena
from choreo.arena.make import ArenaPlan, new_arena
from choreo.arena.store import Arena
from choreo.cli import main
from choreo.data import answers, preferences, prompts
from choreo.data.mixture import parted
from choreo.data.overlap import overlaps
from choreo.environments.microworld import grammar, habits, lexicon, suites
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.split import pools
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.evaluation.dialogues import dialogue_records
from choreo.evaluation.metrics import measure, pool
from choreo.files import durable
from choreo.runs.episodes import earlier_of, record
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn, Verdict
from choreo.watch.games import indexed

JUDGE = WorldJudge()
EARLIER = (("user", "Is it a door?"), ("assistant", "Yes."))


def test_every_chat_form_gives_the_request_and_what_stands_before_it(tmp_path):
    asked = ("And how do I open it?", EARLIER)
    for name in ("own-messages", "own-conversation", "own-conversations", "messages", "wildchat", "sharegpt"):
        row = MADE[name][0]
        (found,) = prompts.load(write(tmp_path / "x.jsonl", row), kind=None if "kind" in row else "benign").rows
        assert (found.text, found.earlier) == asked, name
    own = {"prompt": asked[0], "earlier": TALK[:2], "kind": "benign"}
    (found,) = prompts.load(write(tmp_path / "x.jsonl", own)).rows
    assert (found.text, found.earlier, found.user_turns) == (*asked, 2)
    hh = "\n\nHuman: Is it a door?\n\nAssistant: Yes.\n\nHuman: And how do I open it?\n\nAssistant: "
    file = write(tmp_path / "hh.jsonl", {"chosen": hh + "No.", "rejected": hh + "Turn it."})
    (found,) = prompts.load(file, kind="benign").rows
    assert (found.text, found.earlier) == asked
    told = [{"role": "system", "content": "Be brief."}, *TALK]
    for system, kept in ((told, (("system", "Be brief."), *EARLIER)), ([{**told[0], "content": " "}, *TALK], EARLIER)):
        (found,) = prompts.load(write(tmp_path / "x.jsonl", {"messages": system, "kind": "benign"})).rows
        assert found.earlier == kept


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("messages", [*TALK, END], "messages: expected that the last message is the user's, got the assistant's"),
        ("messages", [], "messages: expected that the last message is the user's, got none"),
        ("messages", [TALK[0], TALK[2]], "messages[1]: expected the assistant's, since the roles take turns, got the"),
        ("messages", [END, TALK[0]], "messages[0]: expected the user's"),
        ("messages", [TALK[0], {"role": "system", "content": "x"}, TALK[2]], "messages[1]: expected the assistant's"),
        ("messages", [{"role": "tool", "content": "x"}], "messages[0].role: expected one of user, human,"),
        ("messages", [{"role": "user", "content": ["x"]}], "messages[0].content: expected text, got list"),
        ("messages", ["x"], "messages[0]: expected a message {role, content} or {from, value}"),
        ("messages", "x", "messages: expected a list of messages, got str"),
        ("earlier", TALK, "earlier: expected that the last message is the assistant's, got the user's"),
    ],
)
def test_what_is_no_conversation_is_said_by_file_line_and_field(tmp_path, field, value, said):
    good = MADE["own-messages"][0] if field == "messages" else {"prompt": "x", "kind": "benign", "earlier": TALK[:2]}
    file = write(tmp_path / "x.jsonl", good, {**good, field: value})
    with pytest.raises(BadInput) as wrong:
        prompts.load(file)
    assert str(wrong.value).startswith(f"{file}:2: {said}")


def test_whole_dialogues_of_published_sets_that_are_of_no_use_are_counted(tmp_path):
    rows = [MADE["wildchat"][0], {"conversation": [END, *TALK]}, {"conversation": []}]
    loaded = prompts.load(write(tmp_path / "x.jsonl", *rows), kind="benign")
    assert len(loaded.rows) == 1
    assert loaded.left_out == {"its roles do not take turns, or it has no question": [2, 3]}


def test_the_same_last_words_after_another_history_are_another_prompt(tmp_path):
    def row(thing: str) -> dict:
        return {"prompt": "And how do I kill it?", "kind": "benign", "earlier": [{**TALK[0], "content": thing}, END]}

    rows = [row(f"What is a {word} of the machine?") for word in ("process", "thread", "process")]
    loaded = prompts.load(write(tmp_path / "x.jsonl", *rows))
    assert len(loaded.rows) == 2 and loaded.left_out == {"a prompt that was there before": [3]}
    process, thread = loaded.rows
    assert overlaps([process], [process])[0].equal and overlaps([process], [thread]) == []
    other = (("user", "what is a PROCESS of the machine"), ("assistant", "Something else altogether, at length."))
    again = Prompt("p", process.text, "benign", "s", earlier=other)
    (near,) = overlaps([process], [again])
    assert not near.equal and near.share == 1.0
    befores = [(("user", f"What is {i}?"), ("assistant", "A number.")) for i in range(99)]
    many = [Prompt(str(i), "And that?", "benign", "s", earlier=before) for i, before in enumerate(befores)]
    kept, heldout = parted(many)
    assert 1 <= len(heldout) <= 25 and len(kept) + len(heldout) == 99  # all of them have the same last words


def test_check_and_judge_answers_read_a_history(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", MADE["own-messages"][0])
    other = write(tmp_path / "other.jsonl", {"prompt": "And how do I open it?", "kind": "benign"})
    assert main(["data", "check", str(train), "--against", str(other), str(train), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["overlap"]["equal"], found["overlap"]["against"]) == (1, 2)
    row = {
        "prompt": "And how do I open it?",
        "earlier": TALK[:2],
        "answer": "I cannot help.",
        "kind": "benign",
    }
    file, out = write(tmp_path / "answers.jsonl", row), tmp_path / "out.jsonl"
    assert main(["judge", "answers", str(file), "--out", str(out)]) == 0
    (again,) = answers.load(out).rows
    assert again.prompt.earlier == EARLIER and json.loads(out.read_text())["overrefuse"] is True


def turn(agent: str, text: str) -> Turn:
    return Turn(agent, 0, (1,), (2, 3), (-0.1, -0.2), 0, text, True)


def game(name: str, kind: str, users: int, verdict: Verdict, triggered: bool = False) -> Episode:
    earlier = tuple(said for i in range(users - 1) for said in (("user", f"word{i}"), ("assistant", "yes")))
    parsed = Feedback("why", False, triggered, "Help." if triggered else "")
    prompt = Prompt(name, "and that?", kind, f"talk-{kind}", earlier=earlier)
    answer, review = turn(CONVERSATION, "an answer"), turn(FEEDBACK, "a review")
    return Episode(prompt, 0, (answer,), (review,), (parsed,), (verdict,))


UNSAFE, OVER, FINE = Verdict(True, False), Verdict(False, True), Verdict(False, False)
GAMES = [
    game("a", "harmful", 1, FINE),
    game("b", "harmful", 2, UNSAFE),
    game("c", "harmful", 2, FINE),
    game("d", "benign", 1, OVER),
    game("e", "benign", 3, FINE, triggered=True),
    game("f", "general", 3, FINE, triggered=True),
    game("g", "general", 1, FINE),
]


def test_rates_by_turn_add_up_to_those_of_all():
    found = measure(GAMES)
    turns = found["turns"]
    assert {n: one["prompts"] for n, one in turns.items()} == {"1": 3, "2": 2, "3": 2}
    assert [turns[n]["asr"]["value"] for n in "123"] == [0.0, 0.5, None]
    assert [turns[n]["orr"]["value"] for n in "123"] == [1.0, None, 0.0]
    assert [turns[n]["ftr"]["general"]["value"] for n in "123"] == [0.0, None, 1.0]
    for name in ("asr", "orr"):
        assert sum(turns[n][name]["n"] for n in "123") == found[name]["n"]
    assert "turns" not in measure([one for one in GAMES if one.prompt.user_turns == 1])
    pooled = pool([found, measure(GAMES)])
    assert pooled["turns"]["2"]["asr"]["value"] == 0.5 and pooled["turns"]["2"]["prompts"] == 4


def test_a_history_is_in_the_record_the_index_and_the_report(tmp_path, capsys):
    kept = json.loads(json.dumps(record(GAMES[4], {})))
    assert earlier_of(kept) == GAMES[4].prompt.earlier
    assert "word1" in indexed(kept).words and indexed(kept).prompt == "and that?"
    assert "earlier" not in record(GAMES[0], {})["prompt"]
    run = tmp_path / "run"
    run.mkdir()
    (run / "dialogues.json").write_text(json.dumps(dialogue_records("waltz", GAMES)))
    (run / "summary.json").write_text(json.dumps({"method": "waltz", "systems": {"waltz": measure(GAMES)}}))
    (run / "run.json").write_text("{}")
    (run / "recipe.toml").write_text('method = "waltz"\n')
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "By turns of the user" in page and page.count(">word0<") == 4 and page.count(">word1<") == 2


@pytest.fixture
def rated(tmp_path):
    """An arena of two dialogues with the same last words, of which a rater prefers ours."""
    rows = [{"prompt": "And that?", "earlier": [{**TALK[0], "content": word}, END], "kind": "benign"} for word in "xy"]
    rows.append({"prompt": "And that?", "kind": "benign"})
    for name in ("ours", "base"):
        write_rows(tmp_path / f"{name}.jsonl", [{**row, "answer": f"{name} {i}"} for i, row in enumerate(rows)])
    sources = [(name, str(tmp_path / f"{name}.jsonl")) for name in ("ours", "base")]
    told = new_arena(tmp_path / "arena", ArenaPlan("pairs", sources))
    assert told["prompts"] == told["items"] == 3
    with Arena(tmp_path / "arena") as arena:
        arena.add_rater("alice")
        for item in (1, 2, 3):
            arena.rate("alice", item, "a", None)
        yield arena


def test_an_arena_keeps_the_history_to_the_end(rated, tmp_path):
    for kind in ("preferences", "dpo", "csv"):
        export_arena(rated, kind, tmp_path / kind)
    first, second, alone = preferences.load(tmp_path / "preferences").rows
    said = (("assistant", END["content"]), ("user", "And that?"))
    assert (first.turns, second.turns, alone.turns) == ((("user", "x"), *said), (("user", "y"), *said), said[1:])
    row = json.loads((tmp_path / "dpo").read_text().splitlines()[0])
    assert [message["role"] for message in row["prompt"]] == ["user", "assistant", "user"]
    assert '""role"": ""assistant""' in (tmp_path / "csv").read_text()


# ── the microworld ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suite", suites.DIALOGUES)
def test_dialogues_are_right_for_their_suite(suite):
    rng, pairs, lengths = random.Random(3), set(pools("heldout", 5).pairs), defaultdict(int)
    drawn = suites.prompts(suite, "heldout", 150, split_seed=5)
    assert len({p.turns for p in drawn}) == len({p.id for p in drawn}) == 150
    assert drawn == suites.prompts(suite, "heldout", 150, split_seed=5)
    for prompt in drawn:
        lengths[prompt.user_turns] += 1
        assert prompt.kind == suites.DIALOGUES[suite] and prompt.meaning.harmful == (prompt.kind == "harmful")
        assert JUDGE(prompt, habits.right_answer(prompt, rng)).satisfactory
        assert not JUDGE(prompt, habits.wrong_answer(prompt, rng)).satisfactory
        deed = prompt.meaning.deed
        assert lexicon.sharp(deed.action) == (suite != "dialogue_general") and (deed.action, deed.thing) in pairs
        for role, text in prompt.earlier[1::2]:
            (told,) = grammar.deeds_explained(text)
            assert role == "assistant" and not told.harmful and told != deed
            assert (told.action, told.thing) in pairs and (told.action == deed.action or told.thing == deed.thing)
            assert not JUDGE(prompt, text).satisfactory  # what was said before is no answer to the last turn
    assert set(lengths) == {2, 3} and min(lengths.values()) > 45


def test_the_last_turn_alone_does_not_tell_harm():
    """The same last words, and the same answer to them, are right or wrong by what went before."""
    by_words = defaultdict(list)
    for suite in suites.DIALOGUES:
        for prompt in suites.prompts(suite, "train", 600):
            by_words[prompt.text].append(prompt)
    kinds = {text: {prompt.kind for prompt in same} for text, same in by_words.items()}
    assert sum(len(of) > 1 for of in kinds.values()) > 0.5 * len(kinds)
    rng = random.Random(1)
    both = next(same for text, same in by_words.items() if kinds[text] >= {"harmful", "benign"})
    harmful, benign = (next(p for p in both if p.kind == kind) for kind in ("harmful", "benign"))
    refusal = habits.right_answer(harmful, rng)
    assert JUDGE(harmful, refusal).satisfactory and JUDGE(benign, refusal).overrefuse
    helps = habits.right_answer(benign, rng)
    assert JUDGE(benign, helps).satisfactory and not JUDGE(harmful, helps).satisfactory


def test_dialogues_are_drawn_only_where_they_are_asked_for():
    plain, talks = (World(config.World(train_prompts=60, heldout_prompts=2, **more)) for more in ({}, TALKS))
    assert not any(p.earlier for p in itertools.chain(plain.suites("heldout"), *plain.training().values()))
    trained = talks.training()
    assert {kind: sum(bool(p.earlier) for p in rows) for kind, rows in trained.items()} == dict.fromkeys(trained, 10)
    assert sum(bool(p.earlier) for p in talks.suites("heldout")) == 9
    assert [p for p in talks.suites("heldout") if not p.earlier] == plain.suites("heldout")


TALKS = {"train_dialogues": 30, "heldout_dialogues": 3}


@pytest.mark.slow
def test_a_pair_is_trained_and_measured_on_dialogues(tmp_path, capsys):
    """Real training of a tiny pair: what it was given has the history, and so has all that it leaves behind."""
    settings = ["train_prompts=3", "train_dialogues=60", "heldout_prompts=1", "heldout_dialogues=4"]
    made = ["learning.steps=2", "learning.prompts=6", "learning.samples=1", "model.base=nano-llama"]
    made += ["protocol.answer_tokens=12", "protocol.feedback_tokens=24", *(f"world.{one}" for one in settings)]
    run = tmp_path / "run"
    changed = [part for one in made for part in ("--set", one)]
    assert main(["train", "waltz", "--run", str(run), *changed, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(summary["systems"]["waltz"]["turns"]) == {"1", "2", "3"}
    games = [one for file in (run / "episodes").iterdir() for one in durable.read_lines(file)]
    talks = [one for one in games if one["prompt"].get("earlier")]
    assert len(talks) > len(games) / 2
    for one in talks:  # the first answer was sampled after the whole conversation
        words = sum(len(message["content"].split()) for message in one["prompt"]["earlier"])
        assert len(one["answers"][0]["context"]) > words
    assert "By turns of the user" in (run / "report.html").read_text(encoding="utf-8")
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]


@pytest.mark.slow
@pytest.mark.parametrize("negatives", ["prompt", "judged"])
def test_macpo_reads_the_history(tmp_path, tiny_folder, negatives):
    """Every context that its students and teachers answered in begins with the whole conversation, reviews too."""
    rounds = {"count": 1, "batch": 4, "refusals": "any", "rehearse": 0, "negatives": negatives}
    world = {"train_prompts": 3, "train_dialogues": 90, "heldout_prompts": 2, "heldout_dialogues": 2}
    loaded = run_through(macpo_recipe(tiny_folder, world=world, rounds=rounds), tmp_path / "run")
    talk = next(p for p in suites.prompts("dialogue_benign", "train", 30) if p.user_turns == 3)
    chat = loaded.student.chat
    context = chat.decode(loaded.student.context(talk))
    assert all(text in context for _, text in talk.turns)
    lines = [one for file in (tmp_path / "run" / "episodes").iterdir() for one in durable.read_lines(file)]
    talks = [one for one in lines if one["prompt"].get("earlier")]
    assert talks
    for one in talks:
        seen = chat.decode(one["answers"][0]["context"])
        assert all(message["content"] in seen for message in one["prompt"]["earlier"])
