"""What the agents of every method can do. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from choreo.types import Episode, Prompt

if TYPE_CHECKING:  # these load PyTorch
    import torch

    from choreo.engine.agent import Team
    from choreo.models.chat import Chat
    from choreo.runs.progress import Progress


class Policy(NamedTuple):
    """One policy as it can be exported.

    chat: how its model reads and writes. team: holds its weights. base: the name of its model in the recipe.
    """

    chat: Chat
    team: Team
    base: str


class Agents(Protocol):
    """What the agents of every method can do."""

    @property
    def device(self) -> torch.device | str:
        """Where the weights are: here, or in words."""
        ...

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the agents' chat templates, one sentence each."""
        ...

    def policies(self) -> Mapping[str, Policy]:
        """Every policy, by its name."""
        ...

    def untrained(self) -> Self:
        """The agents as they began, on the same models. They see nothing of what these learn."""
        ...

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        """The prompts for whose answers every model has positions. How many have none is reported to `progress`.

        what: names the prompts in messages ("heldout"). Raises BadInput where there are prompts and none fits.
        """
        ...

    def answer(self, prompts: Sequence[Prompt], *, seed: int = 0, temperature: float | None = None) -> list[Episode]:
        """One episode per prompt, in order, not judged. The last answer of each is what a user gets.

        The noise follows from (seed, prompt id). temperature: None is that of the recipe's evaluation; 0 is greedy.
        """
        ...


class Unread:
    """Stands for agents of whose models no more than a configuration is here, where a recipe is checked for `choreo
    plan`: what needs a tokenizer cannot be told, and every prompt is taken to fit."""

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        return list(prompts)

    def has_room(self, prompt: Prompt) -> bool:
        return True

    @contextmanager
    def rollouts(self) -> Iterator[Self]:
        yield self
