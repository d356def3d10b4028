"""Chat templates that fail for every reason a template can, behind every door of a server: never an HTTP 500."""

from __future__ import annotations

import json

import pytest
from architectures import CHATML, REASONS, TURNS, make
from serving import KEY, listening, make_run
from starlette.applications import Starlette
from starlette.routing import Mount

from choreo.errors import BadInput
from choreo.models.template import TemplateChat
from choreo.server.app import application
from choreo.server.guardrail import PATH, UNREVIEWED, UNSAFE
from choreo.server.keys import own_key
from choreo.server.local import WorkerAgent
from choreo.server.pair import Resident
from choreo.server.session import SampledTurn
from choreo.server.state import Server, Settings
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Limits, Turn

SETTINGS = Settings("run", "adaptive", Limits(1, 2, 2), 0.6)
OTHERS = {
    "no system role": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
    "the last is the user's": "{% if messages[-1].role != 'user' %}{{ raise_exception('last') }}{% endif %}" + CHATML,
    "roles alternate": TURNS.replace("<start_of_turn>", "<|im_start|>")
    .replace("<end_of_turn>", "<|im_end|>")
    .replace("{{ bos_token }}", ""),
    "the first is the user's": "{% if messages[0].role == 'assistant' %}{{ raise_exception('1') }}{% endif %}" + CHATML,
    "forgets what is long ago": "{% set messages = messages[-3:] %}" + CHATML,
    "repeats what is long ago": "{% if messages | length > 3 %}{{ messages[0].content }}{% endif %}" + CHATML,
}
TEMPLATES = OTHERS | {
    why: f"{{% if messages | length > 3 %}}{fault}{{% endif %}}{CHATML}" for why, fault in REASONS.items()
}
# What each takes of user, assistant, user; of two users' messages; and of an answer to nobody. A revision is two more.
TAKES = {why: (False, False, False) for why in TEMPLATES} | {
    "no system role": (True, True, True),
    "the last is the user's": (True, True, True),
    "roles alternate": (True, False, False),
    "the first is the user's": (True, True, False),
}
ASKED = "uau", "uu", "au"


def messages(roles: str) -> list[dict]:
    names = {"u": "user", "a": "assistant"}
    return [{"role": names[role], "content": f"word {i}"} for i, role in enumerate(roles)]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """One server for each template, under its name, all on one model."""
    folder = make("qwen", tmp_path_factory.mktemp("qwen"))
    protocol = {"answer_tokens": 2, "feedback_tokens": 2}
    run = make_run(tmp_path_factory.mktemp("runs") / "run", model={"base": str(folder), "rank": 2}, protocol=protocol)
    resident, routes = Resident(run), []
    for why, template in TEMPLATES.items():
        chat = TemplateChat(resident.chat.tokenizer, template)
        agents = {
            agent: WorkerAgent(resident.worker, chat, agent, feedback_tokens=2, positions=1024) for agent in AGENTS
        }
        server = Server(SETTINGS, agents, [own_key(KEY)], encode=chat.encode)
        routes.append(Mount(f"/{why}", application(server)))
    with listening(Starlette(routes=routes)) as client:
        yield client
    resident.worker.close()


@pytest.mark.slow
@pytest.mark.parametrize("why", TEMPLATES)
def test_the_chat_api_says_what_is_wrong_or_answers(client, why):
    for roles, taken in zip(("u", *ASKED), (True, *TAKES[why]), strict=True):
        for more in (
            {},
            {"stream": True},
            {"stream": True, "choreo": {"trace": True}},
            {"stream": True, "choreo": {"stream": "unchecked"}},
        ):
            asked = {"model": "run", "messages": messages(roles), "max_tokens": 1, **more}
            reply = client.post(f"/{why}/v1/chat/completions", json=asked)
            if taken:
                assert reply.status_code == 200, (roles, more, reply.text)
                assert reply.text.endswith("data: [DONE]\n\n") if more else reply.json()["choices"]
                continue
            error = reply.json()["error"]
            assert reply.status_code == 400 and error["param"] == "messages", (roles, more, reply.text)
            assert "its chat template" in error["message"] and "\n" not in error["message"]
            assert error["type"] == "invalid_request_error" and error["code"] == "invalid_value"


@pytest.mark.parametrize("why", TEMPLATES)
def test_the_guardrail_reviews_every_conversation(client, why):
    """A reviewer is shown a conversation within one message, so that no template can refuse its roles."""

    def post(**body):
        reply = client.post(f"/{why}{PATH}", json={"texts": ["Turn the lid."], **body})
        assert reply.status_code == 200, reply.text
        return reply.json()

    reviewed = 'choreo:reviewed_total{key="local",mode="%s"} %d.0'
    for n, roles in enumerate(("u", *ASKED), start=1):
        said = messages(roles)
        actions = [post(input_type="response", structured_messages=said)]
        repair = {"additional_provider_specific_params": {"repair": True}}
        actions.append(post(input_type="response", structured_messages=said, **repair))
        assert post(input_type="request", structured_messages=said, litellm_call_id=roles) == {"action": "NONE"}
        actions.append(post(input_type="response", litellm_call_id=roles))
        for action in actions:
            assert action["action"] in ("NONE", "BLOCKED", "GUARDRAIL_INTERVENED")
            assert action.get("blocked_reason", UNSAFE) in (UNSAFE, UNREVIEWED)
        told = client.get(f"/{why}/metrics").text
        assert reviewed % ("guard", 2 * n) in told and reviewed % ("repair", n) in told


class Agent:
    """Who says one thing, or fails so. later: it begins to fail with the second answer."""

    trained = True

    def __init__(self, failure: Exception | None = None, later: bool = False):
        self.failure, self.later = failure, later

    def room(self, game, options, rounds):
        pass

    async def next_turn(self, game, options, on_token=None):
        if self.failure and game.sample >= self.later:
            raise self.failure
        return SampledTurn(Turn(CONVERSATION, 0, (), (), (), 0, "fine", True), 1, 1)


def test_what_fails_after_its_room_was_found_is_told_in_the_same_words():
    """A template may ask the clock."""
    server = Server(SETTINGS, {CONVERSATION: Agent(BadInput("not on Sundays")), FEEDBACK: Agent()}, [own_key(KEY)])
    with listening(application(server)) as client:
        for stream in (False, True):
            asked = {"model": "run", "messages": messages("u"), "stream": stream}
            reply = client.post("/v1/chat/completions", json=asked)
            assert reply.status_code == 400 and "not on Sundays" in reply.json()["error"]["message"]


def test_a_stream_that_fails_in_the_middle_ends_with_an_event(capfd):
    """Whatever the failure: of these two games the second one has none of the failures that are foreseen."""
    for failure, code in ((BadInput("a clock"), "invalid_value"), (LookupError("a bug"), "internal_error")):
        server = Server(SETTINGS, {CONVERSATION: Agent(failure, later=True), FEEDBACK: Agent()}, [own_key(KEY)])
        with listening(application(server)) as client:
            more = {"stream": True, "n": 2, "choreo": {"trace": True}}
            reply = client.post("/v1/chat/completions", json={"model": "run", "messages": messages("u"), **more})
        assert reply.status_code == 200
        first, *_, last = [json.loads(event.removeprefix("data: ")) for event in reply.text.strip().split("\n\n")]
        assert first["choreo"]["move"]["text"] == "fine" and last["error"]["code"] == code
    assert "a bug" not in reply.text and '"stream failed"' in capfd.readouterr().err
