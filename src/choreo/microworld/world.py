"""The microworld as an experiment sees it: prompts to train on, prompts held out, a judge, and fixed words."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from choreo import config, hub
from choreo.errors import BadInput, opening
from choreo.microworld import grammar, habits
from choreo.microworld.judge import WorldJudge
from choreo.microworld.lexicon import column
from choreo.microworld.split import Part
from choreo.microworld.suites import SUITES, prompts, training
from choreo.microworld.wording import REFUSALS
from choreo.types import Kind, Prompt, Verdict

BASES = Path(__file__).parent / "bases"


@dataclass(frozen=True)
class World:
    """The split of `settings`, with everything the agents meet in it."""

    settings: config.World
    judge: ClassVar[WorldJudge] = WorldJudge()

    def training(self) -> dict[Kind, list[Prompt]]:
        """Training prompts by kind."""
        s = self.settings
        return training(s.train_prompts, split_seed=s.split_seed, languages=s.languages)

    def suites(self, part: Part, languages: tuple[str, ...] | None = None) -> list[Prompt]:
        """`heldout_prompts` prompts of every suite, drawn from `part`."""
        s = self.settings
        return [
            prompt
            for suite in SUITES
            for prompt in prompts(
                suite, part, s.heldout_prompts, split_seed=s.split_seed, seed=1, languages=languages or s.languages
            )
        ]

    @staticmethod
    def labels(prompt: Prompt, seed: int) -> tuple[str, str]:
        """(chosen, rejected): what a person would label for `prompt`, a satisfactory answer and one that is not.

        Rejected is mostly the wrong act, whole and well said, and now and then an answer gone wrong.
        """
        rng = random.Random(f"labels/{seed}/{prompt.id}")
        return habits.right_answer(prompt, rng), habits.wrong_answer(prompt, rng)

    @staticmethod
    def refuses(answer: str) -> bool:
        """Whether `answer` is a refusal, by its words alone."""
        return grammar.read(answer).act == "refuse"

    @staticmethod
    def refusal(prompt: Prompt) -> str:
        """What a blocking safeguard says."""
        return REFUSALS[0][column(prompt.language)]

    @staticmethod
    def advice(prompt: Prompt, verdict: Verdict) -> str:
        """Template feedback from true labels alone: it names the fault, not the deed, and what slipped into harm that
        nobody asked for is told to refuse."""
        return habits.advice(prompt, habits.true_label(verdict), plain=True)


def base_folder(name: str, *, config_only: bool = False) -> Path:
    """The folder of a shipped base, `name` itself as a folder in Hugging Face format, or that of a model on the hub.

    config_only: of the hub's, its configuration is enough. Raises BadInput where there is none, or the hub's is not
    here and cannot be had.
    """
    with opening(repr(name), "is no name of a folder"):
        for folder in (BASES / name, Path(name)):
            if _is_there(folder / "config.json"):
                return folder
        used = _is_there(Path(name))
    if used:
        what = "a file" if Path(name).is_file() else "a folder without a config.json"
        raise BadInput(f"base {name!r}: is {what if Path(name).exists() else 'a link to nothing'}; expected a model in "
                       "Hugging Face format")  # fmt: skip
    if hub.is_name(name) and not Path(name).parent.is_dir():
        return hub.snapshot(name, config_only=config_only)
    shipped = ", ".join(sorted(p.name for p in BASES.glob("*") if p.is_dir()))
    raise BadInput(f"base {name!r}: neither a shipped one ({shipped}) nor a folder with a "
                   "config.json (choreo world pretrain makes one), nor a model on the hub (owner/name)")  # fmt: skip


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name, a link to nothing too."""
    return path.exists() or path.is_symlink()
