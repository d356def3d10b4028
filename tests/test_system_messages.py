"""System messages of callers: who is trained under which, what is measured under others, and that a server gives the
pair the very tokens that training gave it."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from architectures import make
from serving import KEY, Serving, listening, make_run
from test_trainer import episodes, lines, same, small

from choreo import config
from choreo.cli import main
from choreo.data import prompts as prompt_files
from choreo.data.mixture import parted
from choreo.data.system_messages import SystemMessage, load_system_messages
from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.evaluation.metrics import measure
from choreo.experiment.paths import rooted
from choreo.files import durable
from choreo.judges.base import with_garbled
from choreo.methods.base import method_of
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.system_messages import once_more, under_some
from choreo.methods.waltz.trainer import train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.server.app import application
from choreo.server.guardrail import PATH
from choreo.server.keys import own_key
from choreo.server.pair import Resident
from choreo.server.run import Options, system_policy_of
from choreo.server.state import Server, Settings
from choreo.types import AGAIN, Episode, Prompt, TextTurn, Verdict

MESSAGES = [SystemMessage(line, text) for line, text in enumerate(("Be brief.", "You run a bakery.", "Say please."), 1)]
TRAIN, HELDOUT = "choreo:english/system_messages.jsonl", "choreo:english/system_messages_heldout.jsonl"


def asked(count: int, **more) -> list[Prompt]:
    return [Prompt(f"p-{i}", f"How do I paint lamp {i}?", "benign", "lamps", **more) for i in range(count)]


def fits(prompt: Prompt) -> bool:
    return True


def test_which_prompts_are_told_what_follows_from_key_and_prompt_alone():
    seed = 11
    print("seed", seed)
    batch = [(prompt, sample) for prompt in asked(400) for sample in range(2)]
    told = dict.fromkeys(under_some(batch, MESSAGES, 0.3, (seed, 1), fits))
    assert len(told) == len(batch)
    by_prompt = {prompt.id: prompt for prompt, _ in told}
    assert len({(prompt.id, prompt.turns) for prompt, _ in told}) == 400  # all samples of a prompt have the same
    under = [prompt for prompt in by_prompt.values() if prompt.told]
    assert 0.22 < len(under) / 400 < 0.38
    assert set(Counter(prompt.earlier for prompt in under)) == {(("system", one.text),) for one in MESSAGES}
    mixed = random.Random(seed).sample(batch, 300)
    assert all(by_prompt[prompt.id] == prompt for prompt, _ in under_some(mixed, MESSAGES, 0.3, (seed, 1), fits))
    assert {p for p, _ in under_some(batch, MESSAGES, 0.3, (seed, 2), fits)} != set(by_prompt.values())
    assert under_some(batch, [], 1.0, (seed, 1), fits) == batch
    assert under_some(batch, MESSAGES, 1.0, (seed, 1), lambda prompt: not prompt.told) == batch  # none has room
    own = [(prompt.under("Own."), 0) for prompt in asked(9)]
    assert under_some(own, MESSAGES, 1.0, (seed, 1), fits) == own


def game(prompt: Prompt, verdict: Verdict) -> Episode:
    return Episode(prompt, 0, (TextTurn("conversation", 0, "An answer.", True, 2),), verdicts=(verdict,))


def test_what_is_measured_once_more_is_in_no_headline_figure_and_beside_the_same_prompts():
    plain = [*asked(6), *(replace(p, id=f"h{p.id}", kind="harmful", text=f"{p.text}!") for p in asked(4))]
    plain.append(Prompt("own", "Hi.", "benign", "lamps", earlier=(("system", "Own."),)))
    again = once_more(plain, MESSAGES)
    assert again == once_more(plain[::-1], MESSAGES)[::-1] and once_more(plain, []) == []
    assert [p.turns[1:] for p in again] == [p.turns for p in plain[:-1]]  # one with a message of its own is not
    assert all(p.told and p.suite == "lamps+system" and p.id.rpartition("+system-")[2] in "123" for p in again)
    fine, bad = Verdict(False, False), Verdict(True, True)
    once = [game(prompt, fine) for prompt in plain]
    before = measure(once)
    found = measure([*once, *(game(prompt, bad) for prompt in again[1:])])
    groups = found.pop("system_messages")
    assert found.pop("suites") == before.pop("suites") | {f"lamps{AGAIN}": measure_suite(again[1:], bad)}
    assert found == before and "system_messages" not in before
    assert {name: one["prompts"] for name, one in groups.items()} == {"without": 9, "with": 9}  # one was left out
    assert [groups[name][rate]["value"] for name in ("without", "with") for rate in ("asr", "orr")] == [0, 0, 1, 1]


def measure_suite(some: list[Prompt], verdict: Verdict) -> dict:
    one = measure([game(replace(prompt, suite="x"), verdict) for prompt in some])
    return one["suites"]["x"]


def test_an_echo_of_the_system_message_says_nothing():
    told = asked(1)[0].under("You are the warm and helpful assistant of a small bakery in the old market town.")
    echo, fine = "I am the warm and helpful assistant of a small bakery in the old market town.", Verdict(False, False)
    assert with_garbled(fine, told, echo).garbled and not with_garbled(fine, asked(1)[0], echo).garbled
    assert not with_garbled(fine, told, "Take a brush, and paint it.").garbled


def test_rows_of_prompts_may_have_a_system_message_and_no_message_moves_a_prompt_to_the_other_side(tmp_path):
    user = {"role": "user", "content": "And how do I open it?"}
    rows = [{"messages": [{"role": role, "content": "Be brief."}, user], "kind": "benign"} for role in ("developer",)]
    file = tmp_path / "x.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (found,) = prompt_files.load(file).rows
    assert found.earlier == (("system", "Be brief."),) and found.told
    plain = asked(60)
    kept, heldout = parted(plain)
    assert kept and heldout
    for message in MESSAGES:  # the same request must not be trained on under one message and measured under another
        told = parted([prompt.under(message.text) for prompt in plain])
        assert [[prompt.id for prompt in side] for side in told] == [[p.id for p in side] for side in (kept, heldout)]


def test_the_shipped_messages_are_apart_counted_and_read_by_data_check(tmp_path, capsys):
    card = (Path(prompt_files.__file__).parent / "english" / "DATA_CARD.md").read_text(encoding="utf-8")
    every = {name: load_system_messages(name).rows for name in (TRAIN, HELDOUT)}
    told = dict(re.findall(r"^\| `(system_messages\w*\.jsonl)` \| (\d+) system messages", card, re.M))
    assert {f"choreo:english/{name}": int(count) for name, count in told.items()} == {
        name: len(rows) for name, rows in every.items()
    }
    words = [" ".join(re.findall(r"\w+", one.text.casefold())) for rows in every.values() for one in rows]
    assert len(set(words)) == len(words) and max(len(one.split()) for one in words) <= 40
    (tmp_path / "bad.jsonl").write_text(
        '{"role": "system", "content": "Be brief."}\n{"role": "user", "content": "x"}\n'
    )
    assert main(["data", "check", HELDOUT]) == 0
    assert "as system messages: system messages of callers (system): 20 rows, 20 of use" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "bad.jsonl")]) == 2
    assert "bad.jsonl:2: role: expected one of system, developer, got 'user'" in capsys.readouterr().out


GOOD = '{"role": "system", "content": "Be brief."}'
SETTINGS = [
    "world.train_prompts=30",
    "world.heldout_prompts=1",
    "learning.steps=1",
    "learning.prompts=3",
    "learning.samples=1",
    "protocol.answer_tokens=6",
    "protocol.feedback_tokens=8",
]


@pytest.mark.parametrize(
    ("train", "heldout", "said"),
    [
        ('{"role": "user", "content": "x"}', "", "{train}:1: role: expected one of system, developer, got 'user'"),
        (f"{GOOD}\n" + '{"role": "system", "content": " "}', "", "{train}:2: content: expected words, got none"),
        (f'{GOOD}\n{{"role": "system"}}', "", "{train}:2: content: expected text, got nothing"),
        ('{"system": "x"}', "", "{train}:1: no known format has the fields system"),
        (
            GOOD,
            f'{{"role": "system", "content": "x"}}\n{GOOD.upper()}',
            "{heldout}:2: role: expected text, got nothing",
        ),
        (GOOD, f'{{"role": "system", "content": "x"}}\n{GOOD.replace("Be", "be ")}', "{heldout}:2: is also trained on"),
        (GOOD.replace("Be", "be " * 900), "", "{train}:1: content: no training prompt has room under this message"),
        (None, "", "{train}: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_before_a_run_is_made(tmp_path, capsys, train, heldout, said):
    files = {"train": tmp_path / "train.jsonl", "heldout": tmp_path / "heldout.jsonl"}
    words = [*SETTINGS, f"system_messages.train={files['train']}", "model.base=nano-llama"]
    if train is not None:
        files["train"].write_text(train)
    if heldout:
        files["heldout"].write_text(heldout)
        words.append(f"system_messages.heldout={files['heldout']}")
    run = tmp_path / "run"
    assert main(["train", "waltz", *(part for one in words for part in ("--set", one)), "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert said.format(**files) in error and len(error.strip().splitlines()) == 1 and not run.exists()


# ── trained pairs ────────────────────────────────────────────────────────────────────────────────


def recipe_under(folder: Path, **more) -> WaltzRecipe:
    """Four steps of a tiny pair, most of whose prompts stand under a system message."""
    for name, some in (("system", MESSAGES), ("other", [SystemMessage(1, "Rhyme.")])):
        rows = [json.dumps({"role": "system", "content": message.text}) for message in some]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    told = {"train": str(folder / "system.jsonl"), "heldout": str(folder / "other.jsonl"), "share": 0.7}
    made = small(steps=4, prompts=4, samples=2).model_dump() | {"system_messages": told}
    made["protocol"] |= {"answer_tokens": 10, "feedback_tokens": 24}
    made["world"] |= {"heldout_prompts": 2}
    made["model"] |= {"base": "nano-llama"}
    return WaltzRecipe.model_validate(made | more)


def trained(path: Path, recipe: WaltzRecipe) -> Path:
    with Run.open(path) if path.exists() else Run.create(path, recipe) as run, Progress() as progress:
        train(recipe, run, progress)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of the microworld, in its format of turns."""
    folder = tmp_path_factory.mktemp("micro")
    return trained(folder / "run", recipe_under(folder))


@pytest.fixture(scope="module")
def templated(tmp_path_factory) -> Path:
    """A run on prompts of a file, of which one has a system message of its own, in a model's own chat template."""
    folder = tmp_path_factory.mktemp("qwen")
    rows = [
        {"prompt": p.text, "kind": p.kind} for p in (*asked(5), *(replace(p, kind="harmful") for p in asked(9)[5:]))
    ]
    rows[0]["earlier"] = [{"role": "system", "content": "Own."}]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"mine": {"file": str(folder / "mine.jsonl")}}
    more = {"judge": {"kind": "offline"}, "prompts": {"train": files, "heldout": files}}
    more["learning"] = {"steps": 2, "prompts": 6, "samples": 1, "mix": {"harmful": 0.5, "benign": 0.5}}
    more["model"] = {"base": str(make("qwen", folder / "base")), "rank": 2}
    return trained(folder / "run", recipe_under(folder, **more))


def told_games(run: Path) -> list[dict]:
    games = [one for file in sorted(run.glob("episodes/*.gz")) for one in durable.read_lines(file)]
    return [one for one in games if one["prompt"].get("earlier")]


def test_a_run_says_what_it_was_trained_under_and_goes_on_exactly(whole, tmp_path):
    rows = lines(whole)
    shares = [row["system_messages/share"] for row in rows]
    assert len(shares) == 4 and 0 < sum(shares) / 4 < 1
    assert len(told_games(whole)) == sum(shares) * 8
    assert {one["prompt"]["earlier"][0]["content"] for one in told_games(whole)} <= {one.text for one in MESSAGES}
    assert json.loads((whole / "run.json").read_text())["system_messages"] == {"given": 3, "own": 0}
    path = shutil.copytree(whole, tmp_path / "killed")
    shutil.rmtree(checkpoints(path)[4])  # as if it had been killed in step 4
    recipe = config.load(whole / "recipe.toml")
    file = Path(recipe.system_messages.train)
    said = file.read_text()
    file.write_text(said.replace("bakery", "bank"))
    with pytest.raises(BadInput, match=r"was trained under other system messages than .*system.jsonl has now"):
        trained(path, recipe)
    file.write_text(said)
    trained(path, recipe)
    assert lines(path) == rows and episodes(path) == episodes(whole)
    assert same(checkpoint.load(checkpoints(path)[4]), checkpoint.load(checkpoints(whole)[4]))


@pytest.mark.slow
def test_a_run_is_measured_without_and_with_messages_that_it_was_not_trained_under(whole, tmp_path, capsys):
    path = shutil.copytree(whole, tmp_path / "run")
    assert main(["eval", str(path), "--json"]) == 0
    systems = json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]
    other = tmp_path / "more.jsonl"
    other.write_text(GOOD)
    assert main(["eval", str(path), "--system-messages", str(other)]) == 2
    assert f"{other}:1: is also trained on (" in capsys.readouterr().err
    other.write_text(GOOD.replace("system", "developer").replace("brief", "kind"))
    assert main(["eval", str(path), "--system-messages", str(other), "--out", str(tmp_path / "page")]) == 0
    out = capsys.readouterr().out
    assert "by system message:" in out and "waltz, without" in out and "waltz, with" in out
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert "Without and with a system message" in page and "Be kind." in page and "Rhyme." not in page
    recipe = config.load(path / "recipe.toml")
    plain = recipe.model_copy(update={"system_messages": recipe.system_messages.model_copy(update={"heldout": ""})})
    config_file = path / "recipe.toml"
    config_file.write_text(config.to_toml(plain), encoding="utf-8")
    assert main(["eval", str(path), "--json"]) == 0
    without = json.loads(capsys.readouterr().out.splitlines()[-1])["systems"]
    for name, found in without.items():
        groups = systems[name].pop("system_messages")
        assert groups["without"]["prompts"] == groups["with"]["prompts"] == 12
        apart = {suite for suite in systems[name]["suites"] if suite.endswith(AGAIN)}
        assert len(apart) == 6 and "system_messages" not in found
        for one in (found, systems[name]):
            one.pop("latency_added", None)
        systems[name]["suites"] = {k: v for k, v in systems[name]["suites"].items() if k not in apart}
        assert systems[name] == found  # what is measured once more changes nothing else


def split_at(context: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and behind an answer in the context of its review."""
    starts = [i for i in range(len(context)) if context[i : i + len(answer)] == answer]
    return context[: starts[-1]], context[starts[-1] + len(answer) :]


@pytest.mark.parametrize("run", ["whole", "templated"])
def test_a_server_gives_the_pair_the_very_tokens_that_training_gave_it(run, request):
    """Id by id, the draft's context and its review's."""
    path = request.getfixturevalue(run)
    resident, jobs = Resident(path), []
    submit = resident.worker.submit
    resident.worker.submit = lambda job: (jobs.append(job), submit(job))[1]
    protocol, policy = resident.recipe.protocol, system_policy_of(Options(path))
    assert policy == "train"
    server = Server(Settings("run", "adaptive", protocol.limits, 1.0, system=policy), resident.agents, [own_key(KEY)])
    reviewed = 0
    with listening(application(server)) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=KEY, max_retries=0)
        games = {json.dumps(one["prompt"]): one for one in told_games(path)}
        assert len(games) >= 4
        for one in games.values():
            jobs.clear()
            asked_for = [*one["prompt"]["earlier"], {"role": "user", "content": one["prompt"]["text"]}]
            client.chat.completions.create(model="run", messages=asked_for)
            draft, review = jobs[:2]
            assert [*draft.row.request.context] == one["answers"][0]["context"]
            answers = [resident.chat.content(tuple(ids)) for ids in (one["answers"][0]["ids"], draft.row.ids)]
            if min(map(len, answers)) < 3:
                continue  # so short an answer may stand anywhere
            (before, behind), (served, after) = (
                split_at([*context], [*answer])
                for context, answer in zip(
                    (one["reviews"][0]["context"], review.row.request.context), answers, strict=True
                )
            )
            assert served == before and after[: len(behind)] == behind  # a constrained review begins behind it
            reviewed += 1
        # LiteLLM's guardrail reads several as one message, too.
        seen, user = [], {"role": "user", "content": "How do I paint the lamp?"}
        for told in (["Be brief.", "Hi."], ["Be brief.\n\nHi."]):
            jobs.clear()
            said = [*({"role": "system", "content": text} for text in told), user]
            http.post(PATH, json={"input_type": "response", "texts": ["With a brush."], "structured_messages": said})
            seen.append(jobs[0].row.request.context)
        assert seen[0] == seen[1] and "Hi." in resident.chat.tokenizer.decode(seen[0])
    resident.worker.close()
    assert reviewed >= 2
    if run == "templated":
        assert json.loads((path / "run.json").read_text())["system_messages"] == {"given": 3, "own": 1}
        assert (
            {"Own."}
            < {one["prompt"]["earlier"][0]["content"] for one in games.values()}
            <= {
                "Own.",
                *(message.text for message in MESSAGES),
            }
        )


def test_a_server_takes_them_as_trained_by_default_and_refuses_to_where_there_were_none(whole, tmp_path, capsys):
    untrained = make_run(tmp_path / "run")
    for options, said in (
        ([str(untrained)], "run was not trained under system messages of callers (system_messages.train in its recipe"),
        (["--conversation", "a@http://localhost:1", "--feedback", "a@http://localhost:1"], "is behind a server"),
    ):
        assert main(["serve", *options, "--system", "train", "--port", "0"]) == 2
        error = capsys.readouterr().err
        assert "--system train: " in error and said in error
        assert len(error.strip().splitlines()) == 1
    assert system_policy_of(Options(untrained)) == "refuse" and system_policy_of(Options(None)) == "prepend"
    assert system_policy_of(Options(whole, system="refuse")) == "refuse"
    one = next(one for one in told_games(whole))
    (told,), user = one["prompt"]["earlier"], {"role": "user", "content": one["prompt"]["text"]}
    with Serving(whole) as server:
        assert server.wait("serving")["system"] == "train"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)

        def tokens(*messages: dict) -> int:
            return client.chat.completions.create(model="run", messages=messages).usage.prompt_tokens

        assert tokens(told, user) == len(one["answers"][0]["context"])
        # Several are one message, as training has one.
        both = {"role": "system", "content": f"{told['content']}\n\nHi."}
        assert tokens(told, {"role": "developer", "content": "Hi."}, user) == tokens(both, user)
        with pytest.raises(openai.BadRequestError, match="at the beginning of a conversation alone") as error:
            tokens(user, {"role": "assistant", "content": "7"}, told, user)
        assert (error.value.param, error.value.code) == ("messages.2.role", "unsupported_value")


def test_a_recipe_of_a_real_model_names_the_shipped_messages_in_one_setting():
    recipe = config.load("smollm2", [f"system_messages.train={TRAIN}", f"system_messages.heldout={HELDOUT}"])
    assert rooted(recipe).system_messages == recipe.system_messages  # what ships keeps its name
    own = config.load("smollm2", ["system_messages.train=x.jsonl"])
    assert rooted(own).system_messages.train == str(Path("x.jsonl").absolute())
    assert config.load("smollm2").system_messages.train == ""
    with pytest.raises(
        BadInput, match=r"--set system_messages.share=0.3: system_messages.share: goes with train alone"
    ):
        config.load("smollm2", ["system_messages.share=0.3"])
    plain, told = (
        method_of(one).measured_prompts(one, Task(one), "heldout") for one in (config.load("smollm2"), recipe)
    )
    assert told[: len(plain)] == plain and len(told) == 2 * len(plain)
