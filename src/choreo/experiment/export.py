"""`choreo export`: the agents of a run in Hugging Face format, each with a model card, and what its method adds.

What is written is loaded by transformers, PEFT and vLLM without choreo: weights, a tokenizer with the chat template
that the agents were trained in, and the protocol's prompts as messages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from choreo import config
from choreo.engine.export import export
from choreo.engine.policies import LowRank
from choreo.engine.remote import kept_there
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.methods.agents import Policy
from choreo.methods.base import method_of
from choreo.models.gguf import is_gguf
from choreo.models.hub import is_name
from choreo.models.resolve import base_folder, is_ours
from choreo.report.page import percent
from choreo.runs.checkpoints import last_checkpoint
from choreo.runs.folder import read_info


def export_run(
    path: Path,
    out: Path,
    agent: str | None = None,
    merged: bool | None = None,
    on_remark: Callable[[str], None] | None = None,
) -> list[Path]:
    """Writes the agents of the run at `path`, as its last checkpoint has them, to folders under `out`; returns these.

    agent: one alone; by default those that the run's method names (`Method.exported`).
    merged: True for whole models, False for adapters; None for what was trained.
    on_remark: is given what a user should know of the agents' chat templates.
    Raises BadInput where the run has no checkpoint or no such agent, or something is at `out`.
    """
    read_info(path)
    recipe = config.load(path / "recipe.toml")
    step, checkpoint = exportable(path, recipe)
    check_room(out)
    how = recipe.weights()
    if merged is False and how.train == "full":
        raise BadInput(f"{path}: the run trained whole models, so it has no adapter to write (--adapter)")
    figures(path)  # it raises for a broken summary, before anything is written
    method = method_of(recipe)
    agents = method.load(recipe, checkpoint)
    policies = agents.policies()
    if agent is not None and agent not in policies:
        raise BadInput(f"--agent {agent}: the run has {', '.join(policies)}")
    chosen = method.exported(recipe, agents) if agent is None else [agent]
    whole = how.train == "full" if merged is None else merged
    if on_remark is not None:
        for remark in dict.fromkeys(remark for name in chosen for remark in policies[name].chat.remarks):
            on_remark(remark)
    written = []
    for name in [name for name in policies if name in chosen]:
        policy, folder = policies[name]._replace(base=_called(policies[name].base)), out / name
        chat = policy.chat
        export(policy.team, name, folder, merged=whole, base=policy.base, end_id=chat.end_id)
        chat.tokenizer.chat_template = chat.jinja()
        chat.tokenizer.save_pretrained(str(folder))
        durable.write_text(folder / "README.md", card(path, recipe, name, policy, step, whole))
        written.append(folder)
    durable.write_text(out / "recipe.toml", config.to_toml(recipe))
    for file, content in method.export_files(recipe, agents).items():
        durable.write_json(out / file, content)
    return written


def exportable(path: Path, recipe: config.Recipe) -> tuple[int, Path]:
    """The last step of which the run at `path` has a checkpoint, and the checkpoint. Raises BadInput where there is
    none, or a service has the weights."""
    step, checkpoint = last_checkpoint(path)
    if recipe.engine.remote:
        raise BadInput(f"{path}: {kept_there(recipe.engine.backend, checkpoint)}")
    return step, checkpoint


def check_room(out: Path) -> None:
    """Raises BadInput where something is at `out` already, other than an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput(f"{out}: already exists; name another folder with --out")


def card(path: Path, recipe: config.Recipe, name: str, policy: Policy, step: int, whole: bool) -> str:
    """README.md of an exported agent: what it is, how it was made, what it was measured to be worth, and its limits."""
    method, base = method_of(recipe), policy.base
    info = read_info(path)
    weights = policy.team.agents[name]
    licence = licence_of(base)
    front = {
        "base_model": base,
        "license": licence or "other",
        "library_name": "transformers" if whole else "peft",
        "tags": ["choreo", method.name, "alignment"],
    }
    kind = f"LoRA of rank {weights.rank}, α {weights.alpha:g}" if isinstance(weights, LowRank) else "full weights"
    paper = f" ([arXiv {method.paper}](https://arxiv.org/abs/{method.paper}))" if method.paper else ""
    sections = [
        "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()) + "\n---",
        f"# {recipe.name}: {name}",
        f"The agent `{name}` of a run of {method.title or method.name}{paper}, trained with choreo "
        f"from `{base}` ({kind}), as it was after step {step}. "
        + ("These are whole weights." if whole else "This is an adapter; it needs its base."),
        f"## Run it\n\nIn this folder, after `pip install torch transformers{'' if whole else ' peft'}`:\n\n"
        f"```python\n{script(recipe, name, policy, whole)}\n```",
    ]
    sections += method.card_notes(recipe)
    sections += [
        "## How it was made\n\nEvery setting is in `../recipe.toml`. " + method.learnt_from(recipe, info),
        "## What it was measured to be worth\n\n" + figures(path),
        "## Limits\n\n" + limits(recipe),
        f"## Licence\n\n{licence_terms(licence)}",
    ]
    return "\n\n".join(sections) + "\n"


def cover(path: Path, folders: Sequence[Path]) -> str:
    """README.md over the exported agents of a run: its front matter, and where each agent's own card is."""
    recipe = config.load(path / "recipe.toml")
    method, base = method_of(recipe), _called(recipe.bases()[0])
    front = {"base_model": base, "license": licence_of(base) or "other", "tags": ["choreo", method.name, "alignment"]}
    agents = "\n".join(f"- [{folder.name}]({folder.name}/README.md)" for folder in folders)
    return (
        "---\n" + "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items()) + "\n---\n\n"
        f"# {recipe.name}\n\nAgents that choreo trained by {method.title or method.name}. "
        f"Each has a folder with its model card:\n\n{agents}\n\nEvery setting is in `recipe.toml`.\n"
    )


def licence_of(base: str) -> str | None:
    """What the base's own card says, where it has one."""
    try:
        text = (base_folder(base) / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, BadInput):
        return "apache-2.0" if is_ours(base) else None
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    said = re.search(r"^license: *[\"']?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return said[1] if said else None


def licence_terms(licence: str | None) -> str:
    """The sentence about a base's licence, where it is known and where not."""
    if licence:
        return f"The base's own licence ({licence}) holds."
    return "The licence of the base holds; its folder does not say which, so look there before you share this."


def _called(base: str) -> str:
    """A base's name for others: as on the hub or as choreo has it; a folder or a file by its whole path."""
    return base if is_ours(base) or (is_name(base) and not Path(base).exists()) else str(Path(base).resolve())


def script(recipe: config.Recipe, name: str, policy: Policy, whole: bool) -> str:
    """Python that puts a prompt to the exported agent, in its folder, in the context of training, and prints what it
    answers. It takes torch and transformers, PEFT for an adapter, and choreo where the base comes with it."""
    chat, base = policy.chat, policy.base
    usage = method_of(recipe).usage(recipe, name, chat)
    values = {"prompt": "How do I open a jar?"} | ({"answer": "Turn the lid."} if usage.part == "review" else {})
    standard, others = [*usage.imports, "import re"], ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    lines = ['model = AutoModelForCausalLM.from_pretrained(".")']
    if not whole:
        others.insert(0, "from peft import PeftModel")
        lines = [
            f"base = AutoModelForCausalLM.from_pretrained({json.dumps(base)})",
            'model = PeftModel.from_pretrained(base, ".")',
        ]
        if is_ours(base) or is_gguf(base):
            why = "converts the base" if is_gguf(base) else "brings the base"
            others.insert(0, f"from choreo.models.resolve import base_folder  # choreo {why}")
            lines[0] = f"base = AutoModelForCausalLM.from_pretrained(base_folder({json.dumps(base)}))"
    lines += ['tokenizer = AutoTokenizer.from_pretrained(".")', "", *usage.lines]
    options = dict(chat.options)
    if options:
        lines.append(f"options = {options}  # in training; servers call them chat_template_kwargs")
    given = ", **options" if options else ""
    lines += [
        f"values = {json.dumps(values)}",
        "for message in messages:",
        r'    message["content"] = re.sub(r"\{(\w+)\}", lambda place: values[place[1]], message["content"])',
        "context = tokenizer.apply_chat_template(",
        f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{given}',
        ")",
        "written = model.generate(",
        f"    **context, max_new_tokens={usage.tokens}, do_sample=False,",
        f"    eos_token_id={chat.end_id}, pad_token_id={chat.pad_id},",
        ")",
        'print(tokenizer.decode(written[0, context["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join([*standard, "", *others, "", *lines])


def figures(path: Path) -> str:
    """The table of the run's systems, as Markdown. Raises BadInput for a broken summary."""
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


def limits(recipe: config.Recipe) -> str:
    """What the figures of a run do not tell."""
    judges = "two judges, the figures being the gold judge's," if recipe.gold else "one judge"
    common = (
        f"Measured by {judges} on one distribution of prompts; attacks on the judge or the agents that adapt to "
        "them were not tried."
    )
    return " ".join([common, *method_of(recipe).limits(recipe)])
