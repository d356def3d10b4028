"""`choreo export --gguf`: the pair of a run for llama.cpp's server, a base and an adapter of each agent."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from choreo import config
from choreo.engine.policies import LowRank
from choreo.errors import BadInput, opening
from choreo.experiment.export import check_room, exportable
from choreo.files import durable
from choreo.methods.base import method_of
from choreo.models.gguf import is_gguf
from choreo.models.gguf_writing import check_writable, write_adapter_gguf, write_base_gguf
from choreo.runs.folder import read_info

BASE = "base"  # the name of the base's file, which no agent has


def export_gguf(path: Path, out: Path) -> tuple[list[Path], str]:
    """Writes the pair of the run at `path`, as its last checkpoint has it, to files in `out`. Returns the files, and
    the command that serves them.

    An agent that has learnt nothing has no file; a base that is a GGUF file already is not written again.
    Raises BadInput where the run is of no pair, trained whole models, is on two bases or on one that is not known to
    `models.gguf_writing`, has no checkpoint, or something is at `out`.
    """
    read_info(path)
    recipe: Any = config.load(path / "recipe.toml")
    method = method_of(recipe)
    if not method.has_pair:
        raise BadInput(f"{path}: is a run of {method.name}; --gguf writes a pair alone")
    _, checkpoint = exportable(path, recipe)
    if recipe.weights().train == "full":
        raise BadInput(f"{path}: the run trained whole models, so it has no adapter to write (--gguf)")
    if len(recipe.bases()) > 1:
        raise BadInput(f"{path}: its agents are on two bases, and a server has one (--gguf)")
    check_room(out)
    [base] = recipe.bases()
    agents = method.load(recipe, checkpoint)
    policy = next(iter(agents.policies().values()))
    team, chat = policy.team, policy.chat
    check_writable(team.decoder.model.config)
    written, adapters = [], []
    with opening(out, "cannot be written"):
        out.mkdir(parents=True, exist_ok=True)
        if not is_gguf(base):
            chat.tokenizer.chat_template = chat.jinja()
            write_base_gguf(team.decoder.model, chat.tokenizer, out / f"{BASE}.gguf", chat.end_id)
            written.append(out / f"{BASE}.gguf")
        for name, lora in team.agents.items():
            if isinstance(lora, LowRank) and lora.learnt:
                factors = {layer.name: lora.factors(layer) for layer in lora.targets}
                write_adapter_gguf(team.decoder.model.config, factors, lora.alpha, out / f"{name}.gguf")
                adapters.append(out / f"{name}.gguf")
        durable.write_text(out / "recipe.toml", config.to_toml(recipe))
    command = ["llama-server", "--model", str(written[0] if written else base)]
    command += ["--lora", ",".join(map(str, adapters)), "--lora-init-without-apply"] if adapters else []
    return [*written, *adapters], shlex.join(command)
