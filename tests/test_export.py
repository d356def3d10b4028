"""What is exported is loaded by plain transformers and PEFT, and says the same tokens from the same messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import warm
from architectures import CHATML, make
from peft import PeftModel
from rounding import same
from transformers import AutoModelForCausalLM, AutoTokenizer

from choreo.cli import main
from choreo.config.judge import Judge
from choreo.config.prompts import Prompts, Source
from choreo.engine.requests import Request
from choreo.experiment.export import licence_of
from choreo.experiment.paths import rooted
from choreo.methods.macpo import trainer as macpo
from choreo.methods.macpo.method import MACPO
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.waltz import trainer as waltz
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.method import WALTZ
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import AGENTS

ASKED = "How do I open a jar?"  # in the cards
SAID = {"prompt": "How do I kill a process?", "answer": "Find its number.", "feedback": "Help: this is harmless."}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_folder) -> dict[str, Path]:
    """WaltzRL runs of two steps: on the microworld's format, and on models with templates of their own, of which
    Qwen's and Llama's heed options and Gemma's takes no system message; and with an agent on either."""
    made = {}
    folder = tmp_path_factory.mktemp("runs")
    bases = {"microworld": (tiny_folder, "lora"), "full": (tiny_folder, "full")}
    bases |= {name: (make(name, folder / f"{name}-base"), "lora") for name in ("qwen", "llama", "gemma", "moe")}
    bases |= {f"two-{train}": (tiny_folder, train) for train in ("lora", "full")}
    for name, (base, train) in bases.items():
        feedback = {"feedback_base": str(bases["qwen"][0])} if name.startswith("two") else {}
        recipe = WaltzRecipe.model_validate(
            {
                "name": name,
                "world": {"train_prompts": 30, "heldout_prompts": 2},
                "model": {"base": str(base), "rank": 2, "train": train, **feedback},
                "protocol": {"answer_tokens": 6, "feedback_tokens": 8},
                "stages": {"stage1_share": 0.0},
                "learning": {"steps": 2, "prompts": 3, "samples": 2, "lr": 5e-2},
            }
        )
        made[name] = folder / name
        with Run.create(made[name], recipe) as run, Progress() as progress:
            waltz.train(recipe, run, progress)
    return made


def by_its_card(out: Path, agent: str, monkeypatch) -> tuple[int, ...]:
    """The context that the Python of an exported agent's card makes, run in its folder."""
    monkeypatch.chdir(out / agent)
    exec(of_card(out / agent), made := {})
    return tuple(made["context"]["input_ids"][0].tolist())


def of_card(folder: Path) -> str:
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def filled(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    for name, text in SAID.items():
        messages = [{**m, "content": m["content"].replace(f"{{{name}}}", text)} for m in messages]
    return messages


def greedy(model, context: tuple[int, ...], end_id: int) -> tuple[int, ...]:
    ids = torch.tensor([context])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=end_id
        )
    return tuple(out[0, len(context) :].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, form",
    [
        ("microworld", "--merged"),
        ("microworld", "--adapter"),
        ("qwen", "--merged"),
        ("qwen", "--adapter"),
        ("llama", "--adapter"),
        ("gemma", "--adapter"),
        ("moe", "--adapter"),
        ("moe", "--merged"),
        ("full", "--merged"),
        ("two-lora", "--adapter"),
        ("two-lora", "--merged"),
        ("two-full", "--merged"),
    ],
)
def test_another_library_says_the_same_tokens(name, form, runs, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(runs[name]), "--out", str(out), form]) == 0
    recipe = waltz.WaltzRecipe.model_validate(json.loads(json.dumps(_recipe(runs[name]))))
    pair = waltz.restore(recipe, max(checkpoints(runs[name]).items())[1])
    base = Pair(recipe)
    told = json.loads((out / "protocol.json").read_text())
    answers, reviews = (pair.agents[agent].chat for agent in AGENTS)
    said = {field: answers.encode(text) for field, text in SAID.items()}
    expected = {
        "conversation": answers.answer_context(said["prompt"], [(said["answer"], said["feedback"])]),
        "feedback": reviews.review_context(reviews.encode(SAID["prompt"]), reviews.encode(SAID["answer"])),
    }
    given = {"conversation": ["answer", "revise"], "feedback": ["review"]}
    different = 0
    for agent in AGENTS:
        folder, chat, engine = out / agent, pair.agents[agent].chat, pair.agents[agent].engine
        model = AutoModelForCausalLM.from_pretrained(folder if form == "--merged" else recipe.model.of(agent)[0])
        model = (model if form == "--merged" else PeftModel.from_pretrained(model, folder)).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        messages = filled([m for part in given[agent] for m in told["messages"][part]])
        options = told["template_options"]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        context = tuple(tokenizer.encode(text, add_special_tokens=False))
        assert context == expected[agent]
        request = [Request(context, (0,))]
        [ours] = engine.sample(agent, request, max_new_tokens=12, temperature=0)
        same(engine, agent, *request, greedy(model, context, chat.end_id), ours.ids, 0.0)
        [before] = base.agents[agent].engine.sample(agent, request, max_new_tokens=12, temperature=0)
        different += ours.ids != before.ids
        card = (folder / "README.md").read_text()
        assert f"base_model: {json.dumps(recipe.model.of(agent)[0])}" in card
        assert "arXiv 2510.08240" in card and "## Limits" in card and "the run has not ended" in card
    assert different  # training had moved at least one of them


@pytest.mark.parametrize("name", ["microworld", "qwen", "gemma", "two-lora"])
def test_the_python_of_a_card_makes_the_contexts_of_training(name, runs, tmp_path, monkeypatch):
    assert main(["export", str(runs[name]), "--out", str(tmp_path / "out"), "--merged"]) == 0
    pair = waltz.restore(WaltzRecipe.model_validate(_recipe(runs[name])), None)
    answers, reviews = (pair.agents[agent].chat for agent in AGENTS)
    expected = {
        "conversation": answers.answer_context(answers.encode(ASKED)),
        "feedback": reviews.review_context(reviews.encode(ASKED), reviews.encode("Turn the lid.")),
    }
    for agent in AGENTS:
        assert by_its_card(tmp_path / "out", agent, monkeypatch) == expected[agent]


@pytest.mark.parametrize("name", ["qwen", "shipped"])
def test_the_python_of_an_adapters_card_runs_as_printed_and_says_what_was_trained(name, runs, tmp_path):
    if name == "shipped":
        recipe = WaltzRecipe.model_validate(_recipe(runs["microworld"]) | {"model": {"base": "nano-qwen", "rank": 2}})
        with Run.create(tmp_path / "run", recipe) as run, Progress() as progress:
            waltz.train(recipe, run, progress)
    path, out = tmp_path / "run" if name == "shipped" else runs[name], tmp_path / "out"
    assert main(["export", str(path), "--out", str(out), "--adapter"]) == 0
    pair = waltz.restore(WaltzRecipe.model_validate(_recipe(path)), max(checkpoints(path).items())[1])
    for agent, tokens in zip(AGENTS, (6, 8), strict=True):
        told = warm.run(["-c", of_card(out / agent)], cwd=out / agent)
        assert told.returncode == 0, told.stderr
        chat, engine = pair.agents[agent].chat, pair.agents[agent].engine
        asked = chat.encode(ASKED)
        context = (
            chat.answer_context(asked)
            if agent == AGENTS[0]
            else chat.review_context(asked, chat.encode("Turn the lid."))
        )
        [ours] = engine.sample(agent, [Request(context, (0,))], max_new_tokens=tokens, temperature=0)
        assert told.stdout == chat.decode(ours.ids) + "\n"
        assert "pip install torch transformers peft`" in (out / agent / "README.md").read_text()


def test_a_card_says_on_what_and_by_whom_the_run_was_taught():
    """Of files and another judge it must not say what holds for the microworld, and of MACPO no judge."""
    mine = {"file": "/data/mine.jsonl"}
    files = WaltzRecipe(judge=Judge(kind="offline"), prompts=Prompts(train={"mine": Source(**mine)}))
    info = {"judge": {"judge": "rubric/qwen"}, "prompts": {"train": {"mine-harmful": 4, "mine-benign": 3}}}
    assert WALTZ.learnt_from(files, info) == (
        "It learnt on 7 prompts from `mine.jsonl`, by the verdicts of the judge `rubric/qwen`, which can err. The same "
        "judge measured it, on those of their prompts that were kept out of training."
    )
    world = WALTZ.learnt_from(WaltzRecipe(), {})
    assert "microworld, a small generated" in world and "verdicts of the microworld's exact judge" in world
    other = WALTZ.learnt_from(WaltzRecipe(judge=Judge(kind="offline")), {"judge": {"judge": "offline"}})
    assert "the judge `offline`" in other and "exact" not in other
    macpo = {"data": {"file": "pairs.jsonl"}, "judge": {"kind": "offline"}, "prompts": {"heldout": {"mine": mine}}}
    assert MACPO.learnt_from(MacpoRecipe.model_validate(macpo), {"prompts": {"heldout": {"mine-harmful": 9}}}) == (
        "It learnt from preference pairs in `pairs.jsonl`; no judge's verdict taught it. It was measured by the judge "
        "`offline`, which can err, on 9 prompts from `mine.jsonl`."
    )
    exact = MACPO.learnt_from(MacpoRecipe.model_validate({"data": {"file": "pairs.jsonl"}}), {})
    assert exact.endswith("by the microworld's exact judge, on held-out prompts of the microworld.")


def _recipe(run: Path) -> dict:
    from choreo import config

    return config.load(run / "recipe.toml").model_dump()


def test_macpos_student_is_exported_unless_another_agent_is_named(tiny_folder, tmp_path, capsys, monkeypatch):
    recipe = MacpoRecipe.model_validate(
        {
            "ceiling": False,
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "agents": {"teachers": (str(tiny_folder),), "student": str(tiny_folder), "rank": 2},
            "data": {"labels": 3, "prompts": 3},
            "tuning": {"epochs": 1, "negative_epochs": 1, "batch": 3},
            "rounds": {"count": 1, "epochs": 1, "batch": 3},
            "writing": {"answer_tokens": 6},
        }
    )
    path = tmp_path / "run"
    with Run.create(path, recipe) as run, Progress() as progress:
        list(macpo.train(recipe, run, progress))
    assert main(["export", str(path), "--out", str(tmp_path / "a")]) == 0
    assert [f.name for f in sorted((tmp_path / "a").iterdir())] == ["recipe.toml", "student+"]
    member = MACPO.load(recipe, max(checkpoints(path).items())[1]).student
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "a" / "student+")
    context = member.chat.answer_context(member.chat.encode(ASKED))
    assert by_its_card(tmp_path / "a", "student+", monkeypatch) == context
    request = Request(context, (0,))
    [ours] = member.engine.sample("student+", [request], max_new_tokens=12, temperature=0)
    same(member.engine, "student+", request, greedy(model.eval(), context, member.chat.end_id), ours.ids, 0.0)
    capsys.readouterr()
    assert main(["export", str(path), "--out", str(tmp_path / "b"), "--agent", "nobody"]) == 2
    assert "the run has student+, student-, teacher-1+, teacher-1-" in capsys.readouterr().err
    assert main(["export", str(path), "--out", str(tmp_path / "a")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_licence_is_told_where_the_base_says_one_and_not_made_up(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert licence_of(str(tmp_path)) is None and licence_of("micro-llama") == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: llama3.1\n---\n# A model\n")
    assert licence_of(str(tmp_path)) == "llama3.1"
    (tmp_path / "README.md").write_text("# A model, license: none of this\n")
    assert licence_of(str(tmp_path)) is None


TOLD = "{% for m in messages %}{{ '<|im_start|>' + m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("own", "named", "expected"),
    [
        ({"default": CHATML, "told": TOLD}, "", CHATML),
        ({"default": CHATML, "told": TOLD}, "told", TOLD),
        ({"default": TOLD, "rag": TOLD}, "FILE", CHATML),
        ({"rag.v1.5": CHATML, "told": TOLD}, "rag.v1.5", CHATML),
    ],
)
def test_of_several_templates_the_one_of_training_is_exported(own, named, expected, tmp_path, monkeypatch, capsys):
    base = make("qwen", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    (base / "chat_template.jinja").unlink()
    tokenizer.chat_template = own
    tokenizer.save_pretrained(base)
    monkeypatch.chdir(tmp_path)
    Path("mine.jinja").write_text(CHATML)
    recipe = rooted(
        WaltzRecipe.model_validate(
            {
                "world": {"train_prompts": 30, "heldout_prompts": 2},
                "learning": {"steps": 1, "prompts": 3, "samples": 2},
                "model": {"base": str(base), "rank": 2, "template": named.replace("FILE", "mine.jinja")},
                "protocol": {"answer_tokens": 6, "feedback_tokens": 8},
                "stages": {"stage1_share": 0.0},
            }
        )
    )
    with Run.create(tmp_path / "run", recipe) as run, Progress() as progress:
        pair = waltz.train(recipe, run, progress)
    for form in ("--adapter", "--merged"):
        out = tmp_path / form
        assert main(["export", str(tmp_path / "run"), "--out", str(out), form]) == 0
        for agent in AGENTS:
            assert (out / agent / "chat_template.jinja").read_text() == expected
            assert not (out / agent / "additional_chat_templates").exists()
            chat = pair.agents[agent].chat
            asked, answer = chat.encode(ASKED), chat.encode("Turn the lid.")
            context = chat.answer_context(asked) if agent == AGENTS[0] else chat.review_context(asked, answer)
            assert by_its_card(out, agent, monkeypatch) == context


def test_several_templates_of_which_none_is_the_default_are_named(tmp_path, capsys):
    base = make("qwen", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    (base / "chat_template.jinja").unlink()  # where the default is kept
    tokenizer.chat_template = {"rag": CHATML, "told": TOLD}
    tokenizer.save_pretrained(base)
    for template, said in (
        ("", "none is named default: rag, told; name one of these or a file (template in the recipe)"),
        ("nowhere", "template nowhere: No such file or directory, and the tokenizer's templates are rag, told"),
    ):
        for command in (["plan", "waltz"], ["train", "waltz", "--run", str(tmp_path / "run")]):
            more = ["--set", f"model.base={base}", "--set", f"model.template={template}"]
            assert main([*command, *more]) == 2
            assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_whole_models_have_no_adapter(runs, tmp_path, capsys):
    assert main(["export", str(runs["full"]), "--out", str(tmp_path / "out"), "--adapter"]) == 2
    assert "trained whole models" in capsys.readouterr().err
