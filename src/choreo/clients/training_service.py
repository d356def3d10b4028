"""What choreo asks of a service that has a base, trains adapters on it, and samples from both: a backend of `[engine]`.

One more is a module with a `TrainingService`, and a line in `BACKENDS`. All is in token ids; no weight is loaded here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from choreo.clients.drawn import Drawn

BACKENDS: Mapping[str, str] = {"tinker": "choreo.clients.tinker:TinkerService"}

Text = tuple[tuple[int, ...], tuple[int, ...]]
"""(context, ids), each at least one."""


@dataclass(frozen=True, slots=True)
class ToDraw:
    """context: of the completions. count: how many. seed: of their noise; None leaves it to the service."""

    context: tuple[int, ...]
    count: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class ToLearn:
    """What an adapter learns from: ids after a context. old: log π_old per id. advantages: per id."""

    context: tuple[int, ...]
    ids: tuple[int, ...]
    old: tuple[float, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How an update is made: by −Σ min(ρA, clip(ρ)A) over all tokens, ρ = π_θ/π_old in [low, high], and AdamW.

    max_grad_norm: what the gradient's norm is clipped to. The rest are AdamW's numbers: by default those that PyTorch
    gives it, and so `engine.learner.Learner`; no weight decays.
    """

    low: float
    high: float
    lr: float
    max_grad_norm: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class Updated(NamedTuple):
    """logprobs: log π of each id of each action, before the step. loss: what the service says the sum was; None where
    it says nothing."""

    logprobs: list[tuple[float, ...]]
    loss: float | None


class Saved(NamedTuple):
    """Names by which a service knows what it keeps: what training goes on from, and weights that are sampled."""

    state: str
    weights: str


class Sampler(ABC):
    """Fixed weights of a service, the base's or an adapter's."""

    @abstractmethod
    def draw(self, asked: Sequence[ToDraw], *, tokens: int, temperature: float, end_id: int) -> list[list[Drawn]]:
        """Of each asked its completions, in order: at most `tokens` ids, up to `end_id`. All are asked for at once."""


class TrainedAdapter(ABC):
    """An adapter that is trained."""

    @abstractmethod
    def scores(self, texts: Sequence[Text]) -> list[tuple[float, ...]]:
        """log π(ids | context) per id, in order, as the update computes it."""

    @abstractmethod
    def update(self, actions: Sequence[ToLearn], step: Step) -> Updated:
        """One step on all actions together."""

    @abstractmethod
    def sampler(self) -> Sampler:
        """The weights of now, which what is learnt later does not change."""

    @abstractmethod
    def save(self, name: str) -> Saved:
        """Has the service keep the adapter, and the state of its optimiser, under a name that it does not have yet."""


class TrainingService(ABC):
    """A service. Every method of it, of its samplers and of its adapters raises Unavailable where it does not answer,
    and BadInput where it refuses; both name its url. Nothing but `url` is asked.

    url: its address; "" takes it from the variable that the service itself names. model: its name of the base.
    positions: the most tokens of a context and its completion together; None is not known. Set by `connect`.
    """

    url: str
    model: str
    positions: int | None = None

    @staticmethod
    @abstractmethod
    def fetch(state: str) -> str:
        """The command that gets the weights of `Saved.state` from the service."""

    @abstractmethod
    def connect(self) -> None:
        """Asks whether it is there and has the base, and makes nothing. Comes before all that follows."""

    @abstractmethod
    def base(self) -> Sampler:
        """The base itself."""

    @abstractmethod
    def kept(self, weights: str) -> Sampler:
        """Weights that were saved (`Saved.weights`)."""

    @abstractmethod
    def begin(self, rank: int, seed: int) -> TrainedAdapter:
        """A new adapter, which equals the base."""

    @abstractmethod
    def resume(self, state: str) -> TrainedAdapter:
        """A new adapter from one that was saved (`Saved.state`), with its optimiser's state."""
