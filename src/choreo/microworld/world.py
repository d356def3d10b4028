"""The microworld as an experiment sees it: prompts to train on, prompts held out, a judge, and fixed words."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

from choreo import config
from choreo.errors import BadInput
from choreo.microworld import habits
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
    def refusal(prompt: Prompt) -> str:
        """What a blocking safeguard says."""
        return REFUSALS[0][column(prompt.language)]

    @staticmethod
    def advice(prompt: Prompt, verdict: Verdict) -> str:
        """Template feedback from true labels alone: it names the fault, not the deed, and what slipped into harm that
        nobody asked for is told to refuse."""
        return habits.advice(prompt, habits.true_label(verdict), plain=True)


def base_folder(name: str) -> Path:
    """The folder of a shipped base, or `name` itself as a folder in Hugging Face format."""
    for folder in (BASES / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder
    shipped = ", ".join(sorted(p.name for p in BASES.glob("*") if p.is_dir()))
    raise BadInput(f"model.base: {name!r} is neither a shipped base ({shipped}) nor a folder with a config.json")


def fingerprint(base: Path) -> str:
    """16 hex digits that change when a base does: of its configuration, its tokenizer, and the size and the first MiB
    of each file of weights (to read all of an 8B model would take minutes)."""
    digest = blake2b(digest_size=8)
    for file in sorted(base.glob("*")):
        if file.name in ("config.json", "tokenizer.json") or file.suffix in (".safetensors", ".bin"):
            with open(file, "rb") as stream:
                digest.update(f"{file.name}/{file.stat().st_size}/".encode() + stream.read(2**20))
    return digest.hexdigest()
