"""CoMLRL's side: `python comlrl_side.py WORK FOLDER` takes turns at one piece of work (see work.py).

MAGRPO by its own trainer: two agents, each a whole model. Its settings are its own where they do not change the work.
Changed are the sizes, the learning rate, the turns (one), the sampling (at temperature 1 and nothing cut off, as
choreo does it) and how many prompts make an update: all of a step's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from comlrl.trainers.reinforce import MAGRPOConfig, MAGRPOTrainer
from datasets import Dataset
from torch import Tensor
from turns import Turns
from work import BETA, LEARNING_RATE, Sizes, overrides, reward, spelled

from choreo import config
from choreo.types import CONVERSATION, FEEDBACK

AGENTS = (CONVERSATION, FEEDBACK)


def joint(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """Both agents answer the same prompts, with answers of one length. No KL, as by default."""
    sizes, contexts = Sizes(**work["sizes"]), spelled(work, work["policy"])
    settings = {
        "rollout_buffer_size": sizes.prompts,
        "num_generations": sizes.group,
        "max_new_tokens": sizes.new_tokens,
    }
    magrpo(work, turns, dict.fromkeys(AGENTS, contexts), settings, min_new_tokens=sizes.new_tokens)


def waltz(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """The states of the WaltzRL run, an agent's own for each. Answers end as they do; both agents have one limit."""
    recipe = config.load("waltz", overrides(work["model"], Sizes(**work["sizes"])))
    settings = {
        "rollout_buffer_size": recipe.learning.prompts,
        "num_generations": recipe.learning.samples,
        "max_new_tokens": max(recipe.protocol.answer_tokens, recipe.protocol.feedback_tokens),
        "reference_kl_enabled": True,
        "reference_kl_coef": BETA,
    }
    magrpo(work, turns, work["contexts"], settings)


def magrpo(
    work: Mapping[str, Any],
    turns: Turns,
    contexts: Mapping[str, list[str]],
    settings: Mapping[str, Any],
    **generation: Any,
) -> None:
    """generation: further arguments of transformers' `generate`. The rest is as in `trainer_of`."""
    trainer = trainer_of(work, contexts, settings)
    counts = Counter[str]()

    def counted(generate: Callable[..., Any]) -> Callable[..., Any]:
        def call(**options: Any) -> Any:
            output = generate(**options)
            counts.update(tokens(output.sequences[:, options["input_ids"].shape[1] :], trainer.tokenizer.eos_token_id))
            return output

        return call

    def end(*_: Any) -> None:
        figures = dict(counts)
        counts.clear()
        turns.end(**figures)

    for agent in trainer.agents:
        agent.generate = turns.time("rollout_seconds", counted(agent.generate))
    # Agents learn one after the other, each by one step of its optimiser.
    trainer.optimizers[-1].register_step_post_hook(end)
    trainer.train(**generation)


def trainer_of(
    work: Mapping[str, Any], contexts: Mapping[str, list[str]], settings: Mapping[str, Any]
) -> MAGRPOTrainer:
    """contexts: by agent, what it is asked, prompt after prompt. settings: further ones of MAGRPO."""
    sizes = Sizes(**work["sizes"])
    arguments = MAGRPOConfig(
        num_train_epochs=1,
        agent_learning_rate=LEARNING_RATE,
        agent_devices=sizes.device,
        num_turns=1,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        **settings,
    )
    return MAGRPOTrainer(
        agent_model=work["model"],
        num_agents=len(AGENTS),
        model_config={"dtype": sizes.dtype},
        train_dataset=Dataset.from_dict({agent: contexts[agent] for agent in AGENTS}),
        formatters=[lambda row, agent=agent: row[agent] for agent in AGENTS],
        reward_func=paid,
        args=arguments,
    )


def paid(answers: list[str], others: list[str]) -> list[float]:
    """Both agents' answers are paid together. CoMLRL gives texts, so bytes stand for ids."""
    return [reward(list(f"{one}\n{other}".encode())) for one, other in zip(answers, others, strict=True)]


def tokens(answers: Tensor, end_id: int) -> dict[str, int]:
    """What was sampled and what of it is learnt, of one prompt's answers [group, longest], padded behind their ends.

    CoMLRL 1.4.3 learns every column but the last. So the last token of a longest answer is not learnt, and padding is,
    which is none of the work.
    """
    ends = (answers == end_id).long()
    lengths = (ends.cumsum(1) - ends == 0).sum(1)  # up to the end token, which counts
    columns = answers.shape[1] - 1
    learnt = lengths.clamp(max=columns)
    return {"sampled": int(lengths.sum()), "trained": int(learnt.sum()), "padding": int((columns - learnt).sum())}


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    turns = Turns()
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    {"joint": joint, "waltz": waltz}[name](work, folder, turns)
