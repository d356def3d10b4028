"""`choreo export`: the agents of a run in Hugging Face format, with a model card and, for WaltzRL, the protocol.

What is written is loaded by transformers, PEFT and vLLM without choreo: weights, a tokenizer with the chat template
that the agents were trained in, and the protocol's prompts as messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo import config
from choreo.config.prompts import Source
from choreo.engine.agent import Team
from choreo.engine.export import export
from choreo.engine.policies import LowRank
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.methods.macpo import macpo_run
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.samples import learners
from choreo.methods.waltz.trainer import restore
from choreo.models.chat import Chat
from choreo.models.hub import is_name
from choreo.models.resolve import BASES, base_folder
from choreo.report.page import percent
from choreo.runs.folder import checkpoints, read_info
from choreo.types import CONVERSATION, FEEDBACK

PAPERS = {"waltz": ("WaltzRL", "2510.08240"), "macpo": ("MACPO", "2410.07672")}
FEEDBACK_SCHEMA = {
    "type": "object",
    "properties": {
        "reasoning": {"type": "string"},
        "unsafe": {"type": "boolean"},
        "overrefuse": {"type": "boolean"},
        "feedback": {"type": "string"},
    },
    "required": ["reasoning", "unsafe", "overrefuse", "feedback"],
    "additionalProperties": False,
}


def export_run(
    path: Path,
    out: Path,
    agent: str | None = None,
    merged: bool | None = None,
    told: Callable[[str], None] | None = None,
) -> list[Path]:
    """Writes the agents of the run at `path`, as its last checkpoint has them, to folders under `out`; returns these.

    agent: one alone; by default those that WaltzRL trained, or MACPO's student.
    merged: True for whole models, False for adapters; None for what was trained.
    told: is given what a user should know of the agents' chat templates.
    Raises BadInput where the run has no checkpoint or no such agent, or something is at `out`.
    """
    read_info(path)
    recipe = config.load(path / "recipe.toml")
    found = checkpoints(path)
    if not found:
        raise BadInput(f"{path}: has no checkpoint to export; go on with choreo train --resume {path}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: already exists; name another folder with --out")
    how = recipe.model if isinstance(recipe, WaltzRecipe) else recipe.agents
    if merged is False and how.train == "full":
        raise BadInput(f"{path}: the run trained whole models, so it has no adapter to write (--adapter)")
    _figures(path)  # a summary that is broken is said before anything is written
    step, checkpoint = max(found.items())
    members, chosen = _agents(recipe, checkpoint, agent)
    whole = how.train == "full" if merged is None else merged
    if told is not None:
        for remark in dict.fromkeys(remark for name in chosen for remark in members[name][0].remarks):
            told(remark)
    written = []
    for name, (chat, team, base) in members.items():
        if name not in chosen:
            continue
        folder = out / name
        export(team, name, folder, merged=whole, base=base, end_id=chat.end_id)
        chat.tokenizer.chat_template = chat.jinja()
        chat.tokenizer.save_pretrained(str(folder))
        durable.write_text(folder / "README.md", card(path, recipe, name, chat, team, base, step, whole))
        written.append(folder)
    durable.write_text(out / "recipe.toml", config.to_toml(recipe))
    if isinstance(recipe, WaltzRecipe):
        chats = {name: chat for name, (chat, _, _) in members.items()}
        durable.write_json(out / "protocol.json", protocol(recipe, chats))
    return written


def protocol(recipe: WaltzRecipe, chats: Mapping[str, Chat]) -> dict[str, Any]:
    """The game as data: what each agent is told, when it ends, and what may be read in a review.

    chats: by agent. The options of both are given together, for a template passes over those that it does not know.
    """
    played, answers, reviews = recipe.protocol, chats[CONVERSATION], chats[FEEDBACK]
    return {
        "method": "WaltzRL",
        "paper": "arXiv 2510.08240",
        "rounds": played.rounds,
        "answer_tokens": played.answer_tokens,
        "feedback_tokens": played.feedback_tokens,
        "temperature": recipe.evaluation.temperature,
        "messages": answers.messages() | {"review": reviews.messages()["review"]},
        "template_options": {**answers.options, **reviews.options},
        "feedback_schema": FEEDBACK_SCHEMA,
        "play": "Render all messages by the agent's chat template with `template_options`, as in training. Send "
        "`answer` to the conversation agent and `review`, with its answer, to the feedback agent. Where the review is "
        "JSON of exactly this schema and `unsafe` or `overrefuse` is true, send the conversation agent its messages so "
        "far and `revise`, with the feedback string; at most `rounds` times. Else the answer is final.",
    }


def card(
    path: Path, recipe: config.Recipe, agent: str, chat: Chat, team: Team, base: str, step: int, whole: bool
) -> str:
    """README.md of an exported agent: what it is, how it was made, what it was measured to be worth, and its limits."""
    method, paper = PAPERS[recipe.method]
    info = read_info(path)
    policy = team.agents[agent]
    licence = licence_of(base)
    front = {
        "base_model": base,
        "license": licence or "other",
        "library_name": "transformers" if whole else "peft",
        "tags": ["choreo", recipe.method, "alignment"],
    }
    kind = f"LoRA of rank {policy.rank}, α {policy.alpha:g}" if isinstance(policy, LowRank) else "full weights"
    told = "The licence of the base holds; its folder does not say which, so look there before you share this."
    if licence:
        told = f"The base's own licence ({licence}) holds."
    sections = [
        "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()) + "\n---",
        f"# {recipe.name}: {agent}",
        f"The agent `{agent}` of a {method} run ([arXiv {paper}](https://arxiv.org/abs/{paper})), trained with choreo "
        f"from `{base}` ({kind}), as it was after step {step}. "
        + ("These are whole weights." if whole else "This is an adapter; it needs its base."),
        f"## Run it\n\nIn this folder, after `pip install torch transformers{'' if whole else ' peft'}`:\n\n"
        f"```python\n{script(recipe, agent, chat, base, whole)}\n```",
    ]
    if isinstance(recipe, WaltzRecipe):
        sections.append(
            "It is one of a pair. `../protocol.json` has the messages that each agent is sent, and when a game ends; "
            "alone, an agent is not what was measured."
        )
    sections += [
        "## How it was made\n\nEvery setting is in `../recipe.toml`. " + learnt_from(recipe, info),
        "## What it was measured to be worth\n\n" + _figures(path),
        "## Limits\n\n" + _limits(recipe),
        f"## Licence\n\n{told}",
    ]
    return "\n\n".join(sections) + "\n"


def licence_of(base: str) -> str | None:
    """What the base's own card says, where it has one."""
    try:
        text = (base_folder(base) / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, BadInput):
        return "apache-2.0" if _shipped(base) else None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    said = re.search(r"^license: *[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return said[1] if said else None


def _agents(
    recipe: config.Recipe, checkpoint: Path, agent: str | None
) -> tuple[dict[str, tuple[Chat, Team, str]], Sequence[str]]:
    """Every agent with its chat, team and base's name, and those to be written."""
    if isinstance(recipe, MacpoRecipe):
        crew = macpo_run.restore(recipe, checkpoint)
        models = dict(zip((member.name for member in crew), recipe.bases(), strict=True))
        members = {
            policy: (member.chat, member.team, _called(models[member.name]))
            for member in crew
            for policy in member.team.agents
        }
        chosen: Sequence[str] = [crew.student.positive]
    else:
        pair = restore(recipe, checkpoint)
        members = {
            role: (player.chat, player.engine.team, _called(recipe.model.of(role)[0]))
            for role, player in pair.agents.items()
        }
        chosen = learners(recipe.stages, stage=2)
    if agent is not None and agent not in members:
        raise BadInput(f"--agent {agent}: the run has {', '.join(members)}")
    return members, chosen if agent is None else [agent]


def _called(base: str) -> str:
    """A base's name for others: as on the hub or as shipped; a folder by its whole path."""
    return base if _shipped(base) or (is_name(base) and not Path(base).exists()) else str(Path(base).resolve())


def _shipped(base: str) -> bool:
    return len(Path(base).parts) == 1 and (BASES / base).is_dir()


def learnt_from(recipe: config.Recipe, info: Mapping[str, Any]) -> str:
    """On what prompts the run learnt, by whose verdicts, and what it was measured on. info: what run.json holds."""
    world = f"choreo's microworld, a small generated language, on prompts of split {recipe.world.split_seed}"
    if own := recipe.environment != config.MICROWORLD:
        world = f"the environment `{recipe.environment.rpartition('/')[2]}`"
    counts, heldout, judge = info.get("prompts", {}), recipe.prompts.heldout, _judge(recipe, info)
    on = _of_files(heldout, counts.get("heldout")) if heldout else "prompts that are held out there"
    if isinstance(recipe, MacpoRecipe):
        pairs = f"from preference pairs in `{Path(recipe.data.file).name}`" if recipe.data.file else f"in {world}"
        on = on if heldout else f"held-out prompts of the {'environment' if own else 'microworld'}"
        return f"It learnt {pairs}; no judge's verdict taught it. It was measured by {judge}, on {on}."
    train = recipe.prompts.train
    if train and not heldout:
        on = "those of their prompts that were kept out of training"
    where = f"on {_of_files(train, counts.get('train'))}" if train else f"in {world}"
    return f"It learnt {where}, by the verdicts of {judge}. The same judge measured it, on {on}."


def _of_files(files: Mapping[str, Source], counts: Mapping[str, int] | None) -> str:
    """Prompts by the names of their files. counts: how many there are, by suite, where the run has noted it."""
    many = f"{sum(counts.values())} prompts" if counts else "prompts"
    return f"{many} from {', '.join(f'`{Path(source.file).name}`' for source in files.values())}"


def _judge(recipe: config.Recipe, info: Mapping[str, Any]) -> str:
    if recipe.judge.kind == "exact":
        return "the microworld's exact judge" if recipe.environment == config.MICROWORLD else "its own judge"
    name = info.get("judge", {}).get("judge", recipe.judge.kind)
    return f"the judge `{name}`, which can err"


def script(recipe: config.Recipe, agent: str, chat: Chat, base: str, whole: bool) -> str:
    """Python that puts a prompt to the exported agent, in its folder, in the context of training, and prints what it
    says. It takes torch and transformers, PEFT for an adapter, and choreo where the base is one that comes with it."""
    waltz = isinstance(recipe, WaltzRecipe)
    part = "review" if waltz and agent == FEEDBACK else "answer"
    said = {"prompt": "How do I open a jar?"} | ({"answer": "Turn the lid."} if part == "review" else {})
    standard, others = ["import re"], ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if waltz:
        standard.insert(0, "import json")
    lines = ['model = AutoModelForCausalLM.from_pretrained(".")']
    if not whole:
        others.insert(0, "from peft import PeftModel")
        lines = [
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
            'model = PeftModel.from_pretrained(base, ".")',
        ]
        if _shipped(base):
            others.insert(0, "from choreo.microworld.world import base_folder  # the base comes with choreo")
            lines[0] = f"base = AutoModelForCausalLM.from_pretrained(base_folder({json.dumps(base)}))"
    lines += ['tokenizer = AutoTokenizer.from_pretrained(".")', ""]
    if waltz:
        lines += [
            'protocol = json.load(open("../protocol.json", encoding="utf-8"))',
            f'messages = protocol["messages"]["{part}"]',
        ]
    else:
        lines.append(f"messages = {chat.messages()[part]}")
    options = dict(chat.options)
    if options:
        lines.append(f"options = {options}  # in training; servers call them chat_template_kwargs")
    given = ", **options" if options else ""
    tokens = f'protocol["{agent}_tokens"]'.replace(CONVERSATION, "answer") if waltz else "64"
    lines += [
        f"said = {json.dumps(said)}",
        "for message in messages:",
        r'    message["content"] = re.sub(r"\{(\w+)\}", lambda place: said[place[1]], message["content"])',
        "context = tokenizer.apply_chat_template(",
        f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{given}',
        ")",
        "written = model.generate(",
        f"    **context, max_new_tokens={tokens}, do_sample=False,",
        f"    eos_token_id={chat.end_id}, pad_token_id={chat.pad_id},",
        ")",
        'print(tokenizer.decode(written[0, context["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join([*standard, "", *others, "", *lines])


def _figures(path: Path) -> str:
    file = path / "summary.json"
    if not file.is_file():
        return "Nothing yet: the run has not ended."
    summary = read_object(file)
    rows = [
        f"| {name} | {percent(s.get('asr'))} | {percent(s.get('orr'))} | {percent(s.get('f1'))} |"
        for name, s in summary.get("systems", {}).items()
    ]
    return (
        f"On {summary.get('suite', 'held-out')} prompts, in percent with 95 % intervals: ASR, unsafe answers to "
        "harmful prompts; ORR, refusals of benign ones; F1 of both.\n\n"
        "| system | ASR | ORR | F1 |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def _limits(recipe: config.Recipe) -> str:
    said = [
        "Measured by one judge on one distribution of prompts; attacks on the judge or the agents that adapt to "
        "them were not tried."
    ]
    if isinstance(recipe, WaltzRecipe):
        said.append("Instructions to the feedback agent, hidden in a prompt or an answer, were not tried either.")
    else:
        said.append("MACPO's students tend to refuse more, round by round; ORR beside its base's tells how much.")
    return " ".join(said)
