"""Tinker's API as a `TrainingService`, by Tinker's own client (the extra `tinker`).

The client is told not to send telemetry. It asks one address, with the key in TINKER_API_KEY. It waits for a server
that has gone away for hours, in some calls for ever: here every call is watched, and ends once the server has not
answered for `PATIENCE`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np

from choreo.clients.drawn import Drawn
from choreo.clients.training_service import (
    Sampler,
    Saved,
    Step,
    Text,
    ToDraw,
    ToLearn,
    TrainedAdapter,
    TrainingService,
    Updated,
)
from choreo.errors import BadInput, Unavailable, first_line

try:
    import httpx
    import tinker
    from tinker import types
except ImportError:
    raise BadInput('backend = "tinker" needs Tinker\'s client: pip install "choreo-rl[tinker]"') from None

URL, KEY, PREFIX = "TINKER_BASE_URL", "TINKER_API_KEY", "tml-"
TELEMETRY, COMMAND = "TINKER_TELEMETRY", "TINKER_CREDENTIAL_CMD"
PULSE = 5.0  # seconds between two looks at a server that lets a call wait
PATIENCE = 120.0  # seconds without any answer after which it counts as gone
LOOK = 10.0  # seconds that a look may take
END = 5.0  # seconds that the end of a session may take
REFUSES = {400, 401, 402, 403, 404, 405, 413, 422}  # statuses that another try does not change
SHOWN = 8  # models of the server that a message names

Found = TypeVar("Found")


class TinkerService(TrainingService):
    """A server that speaks Tinker's protocol. Raises BadInput where no address or key is given."""

    def __init__(self, url: str, model: str):
        self.url, self.model = (url or os.environ.get(URL, "")).strip().rstrip("/"), model
        if not self.url.startswith(("http://", "https://")):
            where = f"as engine.url, or in {URL}; it begins with http:// or https://"
            raise BadInput(f'backend = "tinker": give the server\'s address {where}')
        self._key = os.environ.get(KEY, "").strip()
        if not self._key.startswith(PREFIX) or not (self._key.isascii() and self._key.isprintable()):
            raise BadInput(f'backend = "tinker": give the key of {self.url}, {PREFIX}…, in {KEY}')
        os.environ[TELEMETRY] = "0"  # the client's only switch; it is read whenever a client is made
        os.environ.pop(COMMAND, None)  # the client would run it, and send what it prints in place of the key
        logging.getLogger("tinker.lib.retry_handler").setLevel(logging.CRITICAL)  # it says what is raised, too
        self._gone = ""
        self._client: Any = None
        self._ends = ["success"]  # how the session will have ended

    @staticmethod
    def fetch(state: str) -> str:
        return f"tinker checkpoint download {state}"

    def connect(self) -> None:
        """See `TrainingService`. Raises BadInput where the server does not have the model."""
        if why := self._silence():
            raise Unavailable(f"{self.url}: does not answer: {why}")
        told = self.ask(
            lambda: tinker.RestClient(base_url=self.url, api_key=self._key).get_server_capabilities().result()
        )
        models = {one.model_name: one for one in told.supported_models if one.model_name}
        if self.model not in models:
            named = ", ".join([*models][:SHOWN]) + ", …" * (len(models) > SHOWN)
            where = "model.base, or engine.model where the service has another name for it"
            raise BadInput(f"{self.url}: has no model {self.model!r} ({where}); it has {named or 'none'}")
        self.positions = models[self.model].max_context_length

    def base(self) -> Sampler:
        return TinkerSampler(self, self.ask(lambda: self.client.create_sampling_client(base_model=self.model).result()))

    def kept(self, weights: str) -> Sampler:
        return TinkerSampler(self, self.ask(lambda: self.client.create_sampling_client(model_path=weights).result()))

    def begin(self, rank: int, seed: int) -> TrainedAdapter:
        """See `TrainingService`. Attention and MLP get adapters, and the unembedding none, as on choreo's own bases."""

        def made() -> Any:
            options: dict[str, Any] = {"rank": rank, "seed": seed % 2**31, "train_unembed": False}
            return self.client.create_lora_training_client(self.model, **options).result()

        return TinkerAdapter(self, self.ask(made))

    def resume(self, state: str) -> TrainedAdapter:
        return TinkerAdapter(
            self, self.ask(lambda: self.client.create_training_client_from_state_with_optimizer(state).result())
        )

    @property
    def client(self) -> Any:
        """Tinker's, whose session begins with its first use; it is finished when nobody needs the service any more."""
        if self._client is None:
            self._client = tinker.ServiceClient(base_url=self.url, api_key=self._key)
            self._end = weakref.finalize(self, _finish, self._client, self._ends)
        return self._client

    def ask(self, call: Callable[[], Found]) -> Found:
        """What `call` gives, which may wait. Raises as `TrainingService` says."""
        if self._gone and self._silence():
            raise Unavailable(self._gone)
        found: Future[Found] = Future()

        def run() -> None:
            try:
                found.set_result(call())
            except BaseException as error:
                found.set_exception(error)

        threading.Thread(target=run, name="tinker", daemon=True).start()  # nobody waits for it at the end
        heard = time.monotonic()
        while not wait([found], PULSE).done:
            if not (why := self._silence()):
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE:
                self._gone = f"{self.url}: does not answer: {why}"
                if self._client is not None:
                    self._end.detach()
                raise Unavailable(self._gone)
        try:
            return found.result()
        except Exception as error:  # of the client's, which has kinds of its own that have nothing in common
            self._ends[:] = ["errored"]
            raise self._said(error) from None

    def _said(self, error: Exception) -> BadInput:
        line = f"{self.url}: {first_line(error).replace(self._key, '…')}"
        category = getattr(getattr(error, "category", None), "name", "")
        status = next((code for one in _causes(error) if (code := getattr(one, "status_code", 0))), 0)
        ours = type(error) is tinker.TinkerError  # what the client itself does not take, such as a key
        refused = status in REFUSES or category == "User" or ours
        return BadInput(line) if refused else Unavailable(line)

    def _silence(self) -> str:
        """Why the server cannot be reached now; "" where it answers."""
        try:
            told = httpx.get(f"{self.url}/api/v1/healthz", headers={"X-API-Key": self._key}, timeout=LOOK)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return first_line(error).replace(self._key, "…")
        return f"HTTP {told.status_code}" if told.status_code >= 500 else ""


class TinkerSampler(Sampler):
    def __init__(self, service: TinkerService, client: Any):
        self._service, self._client = service, client

    def draw(self, asked: Sequence[ToDraw], *, tokens: int, temperature: float, end_id: int) -> list[list[Drawn]]:
        def drawn() -> list[Any]:
            futures = [
                self._client.sample(
                    prompt=types.ModelInput.from_ints([*one.context]),
                    num_samples=one.count,
                    sampling_params=types.SamplingParams(
                        max_tokens=tokens, stop=[end_id], temperature=temperature, top_k=-1, top_p=1.0, seed=one.seed
                    ),
                )
                for one in asked
            ]
            return [future.result() for future in futures]

        found = []
        for one, told in zip(asked, self._service.ask(drawn), strict=True):
            if len(told.sequences) != one.count:
                raise BadInput(f"{self._service.url}: gave {len(told.sequences)} completions of {one.count}")
            try:
                found.append([_read(sequence, end_id, tokens) for sequence in told.sequences])
            except (TypeError, ValueError) as error:
                raise BadInput(f"{self._service.url}: no completion in token ids: {first_line(error)}") from None
        return found


class TinkerAdapter(TrainedAdapter):
    def __init__(self, service: TinkerService, client: Any):
        self._service, self._client = service, client

    def scores(self, texts: Sequence[Text]) -> list[tuple[float, ...]]:
        data = [_datum(context, ids, weights=(1.0,) * len(ids)) for context, ids in texts]
        return self._logprobs(texts, self._service.ask(lambda: self._client.forward(data, "cross_entropy").result()))

    def update(self, actions: Sequence[ToLearn], step: Step) -> Updated:
        data = [_datum(one.context, one.ids, logprobs=one.old, advantages=one.advantages) for one in actions]
        adam = types.AdamParams(
            learning_rate=step.lr,
            beta1=step.beta1,
            beta2=step.beta2,
            eps=step.eps,
            weight_decay=0.0,
            grad_clip_norm=step.max_grad_norm,
        )

        def learnt() -> Any:
            clip = {"clip_low_threshold": step.low, "clip_high_threshold": step.high}
            told = self._client.forward_backward(data, "ppo", loss_fn_config=clip)
            stepped = self._client.optim_step(adam)  # sent before the first has ended: the server works by turns
            output = told.result()
            stepped.result()
            return output

        output = self._service.ask(learnt)
        told = self._logprobs([(one.context, one.ids) for one in actions], output)
        return Updated(told, output.metrics.get("loss:sum"))

    def sampler(self) -> Sampler:
        return TinkerSampler(
            self._service, self._service.ask(lambda: self._client.save_weights_and_get_sampling_client().result())
        )

    def save(self, name: str) -> Saved:
        def kept() -> Saved:
            state, weights = self._client.save_state(name), self._client.save_weights_for_sampler(name)
            return Saved(state.result().path, weights.result().path)

        return self._service.ask(kept)

    def _logprobs(self, texts: Sequence[Text], output: Any) -> list[tuple[float, ...]]:
        """Of the ids of each text, from an output that has those of all its tokens but the first."""
        found = [tuple(one["logprobs"].data) if "logprobs" in one else () for one in output.loss_fn_outputs]
        if [*map(len, found)] != [len(context) + len(ids) - 1 for context, ids in texts]:
            raise BadInput(f"{self._service.url}: says no log-probability of every token that it was given")
        return [values[len(context) - 1 :] for (context, _), values in zip(texts, found, strict=True)]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _datum(context: tuple[int, ...], ids: tuple[int, ...], **of_ids: Sequence[float]) -> Any:
    """What Tinker learns from: every token but the last, and for each the next one; of the context's nothing counts."""
    tokens = [*context, *ids]
    inputs: dict[str, Any] = {
        name: np.asarray([0.0] * (len(context) - 1) + [*values], np.float32) for name, values in of_ids.items()
    }
    inputs = {"target_tokens": np.asarray(tokens[1:], np.int64), **inputs}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def _read(sequence: Any, end_id: int, tokens: int) -> Drawn:
    """Reads one completion. Raises ValueError where it is not what was asked for."""
    ids, logprobs = tuple(sequence.tokens), tuple(sequence.logprobs or ())
    if not ids or len(ids) != len(logprobs):
        raise ValueError(f"{len(ids)} ids and {len(logprobs)} log-probabilities")
    if end_id in ids[:-1] or (ids[-1] != end_id and len(ids) != tokens):
        raise ValueError(f"a turn of {len(ids)} tokens that ends with token {ids[-1]}")
    return Drawn(ids, logprobs)


def _finish(client: Any, how: Sequence[str]) -> None:
    """Ends the client's session. What the server keeps by name stays."""
    with suppress(Exception):
        client.close(how[0]).result(timeout=END)
