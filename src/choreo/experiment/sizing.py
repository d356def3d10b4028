"""`choreo plan`: what a recipe takes, from its models' configurations alone. No weights are read, but what their files
say of themselves is: a folder that would not load is said here already.

Memory is counted for one device, which holds every model and agent of a run, or with `shard` its share of every agent,
and a judge that runs here. Weights,
gradients, the optimiser's moments and the cache are exact but for the allocator; what an update keeps for its backward
pass is a rule of thumb (ACTIVATIONS), which benchmarks/memory.py holds to measurements.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.config import Recipe
from choreo.config.common import Weights
from choreo.config.judge import TRAINED, OneJudge
from choreo.engine.agent import BESIDE
from choreo.engine.layers import Layer, Reach, chosen, layers_of, reach
from choreo.engine.local import SLOTS
from choreo.errors import BadInput, Unsupported
from choreo.experiment.costs import FLOAT32, Shape, cache_bytes, gradient_bytes, optimiser_bytes
from choreo.judges.resolve import local
from choreo.judges.trained import folder
from choreo.methods.base import method_of
from choreo.models import model_folder
from choreo.models.hub import has_tokenizer
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder

GIB = 2**30
# Numbers kept per token for the backward pass, per input and output of a linear layer: norms, rotations, attention and
# activations keep their own beside.
ACTIVATIONS = 1.5
BFLOAT16 = ("avx512_bf16", "amx_bf16")  # instructions of CPUs that multiply bfloat16
LARGE = 50_000_000  # parameters from which these pay; at a few millions they do not
SPARE = 0.1  # of a device's memory that a plan leaves free: fragments, kernels, the libraries themselves


@dataclass(frozen=True)
class Model:
    """A model by its configuration.

    adaptable: the layers that take an adapter. adapted: those that get one, and reach: how much that is of the model.
    """

    name: str
    kind: str
    parameters: int
    adaptable: list[Layer]
    adapted: list[Layer]
    reach: Reach
    layers: int
    width: int
    keys: int  # numbers per token and layer in the cache, keys and values
    head: int  # weights of the output layer
    positions: int | None
    bytes: int  # per parameter, in the precision that its configuration names

    @classmethod
    def read(cls, name: str, how: Weights | None = None) -> Model:
        """how: it is trained; None is a model that is only used.

        A folder that has a configuration alone will do. Raises BadInput where there is no such model, its configuration
        is not one of a causal language model, or, as far as that can be told without reading weights, it is broken.
        """
        import torch

        from choreo.engine.agent import full_attention

        folder = base_folder(name, config_only=True)
        config = model_folder.configuration(folder, quantised=how is None)
        model = model_folder.blank(folder, config)
        if model_folder.check_whole(folder):
            if not model_folder.is_quantised(config):
                model_folder.check_weights(folder, model)
            model_folder.tokenizer(folder, config)
        try:
            if how:
                full_attention(model)
            adapted = chosen(model, how.targets) if how and how.train == "lora" else []
        except Unsupported as error:
            raise BadInput(f"{name}: {error}") from None
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            name,
            config.model_type,
            sum(p.numel() for p in model.parameters()),
            layers_of(model),
            adapted,
            reach(model, adapted),
            text.num_hidden_layers,
            text.hidden_size,
            2 * heads * head,
            model.get_output_embeddings().weight.numel(),
            getattr(text, "max_position_embeddings", None),
            (config.dtype or torch.float32).itemsize,
        )


def trainable(model: Model, how: Weights) -> int:
    """Parameters that one agent learns."""
    if how.train == "full":
        return model.parameters
    return sum(layer.parameters(how.rank) for layer in model.adapted)


def beside(model: Model, how: Weights) -> bool:
    """Whether adapters stand beside the weights in an update, instead of being laid over them (`engine.policies`)."""
    return how.train == "lora" and (how.dtype != "float32" or model.width >= BESIDE)


def shape(model: Model, how: Weights) -> Shape:
    """What of the model costs time."""
    return Shape(
        matrix=sum(one.used * one.inputs * one.outputs for one in model.adaptable),
        head=model.head,
        stored=model.parameters,
        layers=model.layers,
        width=model.width,
        keys=model.keys,
        size=_bytes(how),
        learnt=trainable(model, how),
        full=how.train == "full",
        beside=beside(model, how),
        recompute=how.recompute,
    )


def shares(how: Weights, ranks: int) -> int:
    """Over how many ranks every agent is sharded; 1 where each rank has it whole."""
    return ranks if how.shard else 1


def standing(model: Model, how: Weights, policies: int, optimisers: int, ranks: int = 1) -> dict[str, float]:
    """Bytes that a model and its agents take throughout, on each of so many ranks."""
    own = trainable(model, how) / shares(how, ranks)
    return {
        "base": model.parameters * _bytes(how),
        "agents": policies * own * FLOAT32,
        "optimisers": optimisers * optimiser_bytes(own),
    }


def updating(model: Model, how: Weights, micro_tokens: int, ranks: int = 1) -> float:
    """Bytes that an update takes beside: gradients, weights laid over the base or gathered, what the backward pass
    needs."""
    size, own = _bytes(how), trainable(model, how) / shares(how, ranks)
    if shares(how, ranks) > 1:
        laid_over = _gathered(model, size)
    elif how.train == "full":
        laid_over = 2 * model.parameters * size if size < FLOAT32 else 0  # a copy and its gradient
    elif beside(model, how):
        laid_over = 0
    else:
        laid_over = 2 * FLOAT32 * sum(layer.size for layer in model.adapted)
    kept = ACTIVATIONS * micro_tokens * size * sum(one.used * (one.inputs + one.outputs) for one in model.adaptable)
    if how.recompute:
        kept = kept / model.layers + model.layers * micro_tokens * model.width * size
    return gradient_bytes(own) + laid_over + kept


def _gathered(model: Model, size: int) -> float:
    """Bytes of what FSDP2 has whole at once: embeddings and output layer with their gradient, throughout; of the layers
    one that computes and its gradient, one that is fetched and one that is copied; and of either, in float32, what is
    on its way to its owners."""
    layer = sum(one.size for one in model.adaptable) / model.layers
    outside = model.parameters - layer * model.layers
    return 2 * outside * size + 4 * layer * size + FLOAT32 * max(layer, outside)


def sampling(model: Model, how: Weights, ranks: int = 1) -> float:
    """Bytes of the cache, of its copy while finished rows are taken out, and of weights laid over the base."""
    size = _bytes(how)
    if how.train == "lora":
        laid_over = FLOAT32 * sum(layer.size for layer in model.adapted) if size == FLOAT32 else 0
    else:  # gathered, or in lower precision
        laid_over = model.parameters * size if shares(how, ranks) > 1 or size < FLOAT32 else 0
    return 2 * SLOTS * cache_bytes(model.layers, model.keys, size) + laid_over


def judging(one: OneJudge) -> float:
    """Bytes of a judge's weights, in the precision that its configuration names; a trained judge is float32."""
    if one.kind == TRAINED:
        return 4.0 * Model.read(folder.read(Path(one.model)).base).parameters
    model = Model.read(one.model)
    return float(model.parameters * model.bytes)


def plan(recipe: Recipe, memory: float | None = None, ranks: int = 1) -> dict[str, Any]:
    """What `recipe` takes on each of so many ranks. memory: of the device, in bytes; None looks at the one here.

    Sizes are bytes; tokens are the most that training can write, and steps what it can take, or None where the method
    does not say: what is measured is not in them. `fits` is whether the estimate and a tenth to spare are within the
    device's memory.
    """
    method, how = method_of(recipe), recipe.weights()
    used = method.models(recipe)
    planned: list[dict[str, Any]] = []
    busiest = 0.0
    for use in used:
        own = use.how or how
        model = Model.read(use.base, own)
        while_updating, while_sampling = updating(model, own, use.micro_tokens, ranks), sampling(model, own, ranks)
        # Games that are played ahead are played while another process updates.
        at_once = while_updating + while_sampling if recipe.engine.staleness else max(while_updating, while_sampling)
        busiest = max(busiest, at_once)
        planned.append(
            {
                "agents_of": use.whose,
                "model": use.base,
                "architecture": model.kind,
                "parameters": model.parameters,
                "trained_per_agent": trainable(model, own),
                "agents": use.policies,
                "positions": model.positions,
                "memory": standing(model, own, use.policies, use.optimisers, ranks),
                "update": while_updating,
                "sampling": while_sampling,
                **({"adapters": model.reach.record()} if own.train == "lora" and model.reach.beyond else {}),
            }
        )
    device, there = (how.device, memory) if memory else device_memory(how.device)
    chats = dict.fromkeys((use.base, use.template, use.rounds) for use in used)
    remarks = [f"{base}: {remark}" for base, file, rounds in chats for remark in _chat(base, file, rounds)]
    remarks += [] if memory else slower(recipe)
    # Each is loaded for itself.
    judges = [(one.model, judging(one)) for settings in recipe.judges() for one in local(settings)]
    needed = sum(sum(model["memory"].values()) for model in planned) + sum(size for _, size in judges) + busiest
    return {
        "recipe": recipe.name,
        "method": method.name,
        "models": planned,
        "judges": judges,
        "remarks": remarks,
        "shares": shares(how, ranks),
        **method.work(recipe)._asdict(),
        "memory": {"device": device, "needed": needed, "there": there},
        "fits": needed * (1 + SPARE) <= there if there else None,
    }


def unreached(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """By base, how much of it adapters reach, where that is not all; see `Reach.record`."""
    how = recipe.weights()
    if how.train == "full" or recipe.engine.remote:
        return {}
    reached = {base: Model.read(base, how).reach for base in recipe.bases()}
    return {base: reach.record() for base, reach in reached.items() if reach.beyond}


def slower(recipe: Recipe) -> list[str]:
    """What of the recipe makes it slower on this machine than it could be, in words."""
    import torch

    from choreo.engine.agent import device_of

    how = recipe.weights()
    if recipe.engine.remote or device_of(how.device).type != "cpu":
        return []
    able = torch.cpu.get_capabilities()
    remarks = [quicker(base, Model.read(base, how).parameters, how, able) for base in recipe.bases()]
    return [remark for remark in remarks if remark]


def quicker(name: str, parameters: int, how: Weights, able: Mapping[str, Any]) -> str:
    """A remark where the model would be trained quicker in bfloat16 on this CPU; "" where not.

    able: what the CPU can do, as `torch.cpu.get_capabilities()` has it. PyTorch multiplies float32 matrices by AVX2
    alone on many processors, and bfloat16 by instructions of their own. A model of the microworld's size gains nothing.
    """
    if how.dtype == "bfloat16" or parameters < LARGE or not any(able.get(one) for one in BFLOAT16):
        return ""
    return (
        f'{name}: this CPU has instructions for bfloat16; with dtype = "bfloat16" a step can take half the time or less'
    )


def device_memory(name: str) -> tuple[str, float | None]:
    """(device, bytes) of what is here under that name; None where it cannot be asked."""
    from choreo.engine.agent import device_of

    device = device_of(name)  # type: ignore[arg-type]
    if device.type == "cuda":
        import torch

        return "cuda", float(torch.cuda.get_device_properties(device).total_memory)
    return device.type, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def tell(found: dict[str, Any]) -> str:
    """The plan in words."""
    lines = [f"{found['recipe']} ({found['method']})"]
    for model in found["models"]:
        agents, each = model["agents"], _count(model["trained_per_agent"])
        lines.append(
            f"  {model['agents_of']}: {model['model']} ({model['architecture']}, "
            f"{_count(model['parameters'])} parameters), "
            + (f"{agents} agents that learn {each} each" if agents > 1 else f"an agent that learns {each}")
        )
        parts = [f"{name} {size(value)}" for name, value in model["memory"].items()]
        lines.append(f"    {', '.join(parts)}; updating {size(model['update'])}, sampling {size(model['sampling'])}")
        if adapters := model.get("adapters"):
            lines.append(f"    {adapters['said']}")
        if found["shares"] > 1:
            lines.append(
                f"    sharded: agents and optimisers are the share of one of {found['shares']} ranks; to sample and to "
                "score, each rank gathers an agent whole"
            )
    lines += [f"  judge: {name}, {size(taken)}" for name, taken in found["judges"]]
    lines += [f"  ! {remark}" for remark in found["remarks"]]
    steps = "not known" if found["steps"] is None else f"{found['steps']:,}"
    tokens = "not known" if found["tokens"] is None else _count(found["tokens"])
    lines.append(f"  steps: {steps}; tokens written, at most: {tokens}; measuring comes on top")
    memory = found["memory"]
    there = f"{size(memory['there'])} on {memory['device']}" if memory["there"] else f"unknown on {memory['device']}"
    lines.append(f"  memory: about {size(memory['needed'])}, of {there}")
    answer = {True: "fits", False: "does not fit", None: "cannot be told"}[found["fits"]]
    return "\n".join([*lines, f"  {answer}" + ("" if found["fits"] is not False else _advice())])


def _advice() -> str:
    return (
        '; what helps: dtype = "bfloat16", recompute = true, train = "lora", a smaller micro_tokens, a smaller '
        'model; with train = "full" on several devices, shard = true. The base is on every device whole.'
    )


def _chat(base: str, template: str, rounds: int) -> tuple[str, ...]:
    """What a user should know of a base's chat template; nothing where its tokenizer is not here yet. Raises BadInput
    where the template cannot be used."""
    folder = base_folder(base, config_only=True)
    return load_chat(folder, template, rounds=rounds).remarks if has_tokenizer(folder) else ()


def _bytes(how: Weights) -> int:
    return 2 if how.dtype == "bfloat16" else FLOAT32


def size(number: float) -> str:
    """Bytes in words."""
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.1f} MiB"


def _count(number: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{math.ceil(number)}"
