"""What becomes of callers' system messages: refused, or read by the conversation agent and by its reviewer too."""

from __future__ import annotations

import openai
import pytest
from serving import KEY, Serving, listening, make_run
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server.app import application
from choreo.server.guardrail import PATH
from choreo.server.keys import own_key
from choreo.server.pair import Resident
from choreo.server.state import Server, Settings
from choreo.text.feedback import render_feedback
from choreo.types import Feedback, Limits

ASKED, TOLD = "What is 3 plus 4?", "How do I paint the lamp?"


def messages(*told: str, role: str = "system") -> list[dict]:
    return [*({"role": role, "content": text} for text in told), {"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def test_the_pair_reads_it_behind_its_own_prompt_and_the_reviewer_as_a_quotation(run):
    """Id by id."""
    resident, jobs = Resident(run), []
    chat, submit = resident.chat, resident.worker.submit
    resident.worker.submit = lambda job: (jobs.append(job), submit(job))[1]
    settings = Settings("run", "adaptive", Limits(1, 40, 96), 0.0, system="prepend")
    token = chat.tokenizer.convert_tokens_to_ids

    def turn(role, *texts):
        return [token(f"<|{role}|>"), *(i for text in texts for i in chat.encode(text)), chat.end_id]

    asked, own, gap = turn("user", ASKED), ("Answer the user.", "\n\n"), "\n\n"
    server = Server(settings, resident.agents, [own_key(KEY)], encode=resident.encode)
    with listening(application(server)) as http:
        client = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=KEY, max_retries=0)

        def contexts(said):
            jobs.clear()
            answer = client.chat.completions.create(model="run", messages=said)
            draft, review = jobs[:2]
            assert answer.usage.prompt_tokens == len(draft.row.request.context)
            return [*draft.row.request.context], [*review.row.request.context], draft.row.ids

        for told, role in (([TOLD], "system"), ([TOLD, "Hi."], "developer")):
            draft, review, ids = contexts(messages(*told, role=role))
            texts = [part for text in told for part in (gap, text)][1:]
            assert draft == turn("system", *own, *texts) + asked + [token("<|assistant|>")]
            quoted = [i for text in told for i in turn("user", "system: ", text)]
            answer = [token("<|assistant|>"), *chat.content(ids), chat.end_id]
            seen = turn("system", "Review the answer.") + quoted + asked + answer + [token("<|assistant|>")]
            assert review[: len(seen)] == seen
        # One without a word asks for nothing; one in the middle stays there.
        assert contexts(messages(" "))[0] == turn("system", own[0]) + asked + [token("<|assistant|>")]
        middle = contexts([*messages(), {"role": "assistant", "content": "7"}, *messages(TOLD)])[0]
        assert middle == [
            *(turn("system", own[0]) + asked + turn("assistant", "7") + turn("system", TOLD) + asked),
            token("<|assistant|>"),
        ]
        # It is a part of what has to fit.
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(model="run", messages=messages("word " * 600))
        assert long.value.code == "context_length_exceeded"
        # The guardrail's reviewer reads it too, wherever it stands.
        begun = turn("system", "Review the answer.") + turn("user", "system: ", TOLD) + asked
        for said in (messages(TOLD), messages(TOLD)[::-1]):
            jobs.clear()
            http.post(PATH, json={"input_type": "response", "texts": ["7"], "structured_messages": said})
            assert [*jobs[0].row.request.context][: len(begun)] == begun
    resident.worker.close()


@pytest.mark.slow
def test_a_pair_refuses_it_unless_told_otherwise(run):
    for options, refused in (((), True), (("--system", "refuse"), True), (("--system", "prepend"), False)):
        with Serving(run, *options) as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
            assert client.chat.completions.create(model="run", messages=messages("")).choices
            if not refused:
                assert client.chat.completions.create(model="run", messages=messages(TOLD)).choices
                continue
            with pytest.raises(openai.BadRequestError, match="--system") as error:
                client.chat.completions.create(model="run", messages=messages("", TOLD))
            assert (error.value.param, error.value.code) == ("messages.1.role", "unsupported_value")


def test_a_model_behind_a_server_is_passed_it_unless_told_otherwise():
    def script(body, n):
        return Say(said(render_feedback(Feedback("ok", False, False, "")) if "response_format" in body else "7"))

    with Stub(script) as stub:
        where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
        with Serving(None, *where) as server:
            assert server.ask(messages=messages(TOLD, "Hi.")).status_code == 200
        draft, review = (body["messages"] for body in stub.seen)
        assert draft == messages(f"{TOLD}\n\nHi.")
        assert [m["role"] for m in review] == ["system", "user"] and f"system: {TOLD}" in review[1]["content"]
        with Serving(None, *where, "--system", "refuse") as server:
            assert server.ask(messages=messages(TOLD)).json()["error"]["param"] == "messages.0.role"
