"""The folder of a trained judge: an adapter in PEFT's format, judge.json, and a data card.

judge.json says on which base the adapter belongs and how it is asked. A base that is another one by its contents, or
whose template writes other ids around the question, is refused: the adapter would give numbers that mean nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from choreo.config.checking import check
from choreo.config.common import Section
from choreo.errors import BadInput, opening
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.judges.trained.question import Question

JUDGE_FILE, ADAPTER_FILE, ADAPTER_CONFIG = "judge.json", "adapter_model.safetensors", "adapter_config.json"


class Shift(Section):
    """What is added to the log odds of each label (`evaluation.judge_calibration`)."""

    harm: float = 0.0
    refusal: float = 0.0


class JudgeFile(Section):
    """judge.json.

    base: the name of the base, as `model.base` has it. fingerprint: of its contents (`hub.fingerprint`).
    form: of the ids around a prompt and an answer (`question.form_of`).
    shift: found by choreo judge calibrate; none before.
    unsure: an answer with a probability within this of one half is left undetermined.
    """

    version: Literal[1] = 1
    base: str
    fingerprint: str
    form: str
    question: Question = Question()
    shift: Shift = Shift()
    unsure: Annotated[float, Field(ge=0, lt=0.5)] = 0.1


def write_judge(folder: Path, told: JudgeFile) -> None:
    """Writes judge.json into the folder of a judge."""
    durable.write_json(folder / JUDGE_FILE, told.model_dump())


def read(folder: Path) -> JudgeFile:
    """Raises BadInput for a folder that is no trained judge."""
    for name in (JUDGE_FILE, ADAPTER_FILE, ADAPTER_CONFIG):
        if not (folder / name).is_file():
            raise BadInput(f"{folder}: no {name}; expected the folder of a judge by choreo judge train --base")
    file = folder / JUDGE_FILE
    return check(JudgeFile, read_object(file), lambda keys: str(file))


def lay_over(model: Any, folder: Path) -> None:
    """Adds the adapter in `folder` to the weights of `model`: W + (α/r)·BA. Raises BadInput where it does not fit."""
    import torch
    from safetensors.torch import load_file

    config, file = read_object(folder / ADAPTER_CONFIG), folder / ADAPTER_FILE
    with opening(file, "no adapter can be read from it"):
        tensors = load_file(str(file))
        scale = float(config["lora_alpha"]) / float(config["r"])
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(tensors):
            layer, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
            if factor == "B.weight":
                continue
            down, up = tensors[name], tensors.get(name.replace(".lora_A.", ".lora_B."))
            weight = weights.get(f"{layer}.weight")
            if factor != "A.weight" or up is None or weight is None or weight.shape != (len(up), down.shape[1]):
                raise BadInput(f"{file}: {name}: the base has no layer for it")
            weight += scale * (up.to(weight) @ down.to(weight))
