"""Contexts in models' own chat templates: what a template says around a turn, and the turn's very ids within."""

from __future__ import annotations

import random
from datetime import datetime
from pathlib import Path

import pytest
from architectures import CHATML, KINDS, PLAIN, make, tokenizer
from transformers.utils import chat_template_utils

from choreo.config.wording import Wording, filled
from choreo.errors import BadInput
from choreo.judges.formats.strongreject import StrongReject
from choreo.judges.local import LocalJudge
from choreo.models.chat import Chat
from choreo.models.fixed_date import TODAY, with_fixed_date
from choreo.models.load import load_chat
from choreo.models.template import OPTIONS, TemplateChat
from choreo.text.prompts import WORDING
from choreo.types import Prompt

ENDS = {"llama": "<|eot|>", "qwen": "<|im_end|>", "moe": "<|im_end|>"} | {
    "gemma": "<end_of_turn>",
    "neox": "<|endoftext|>",
}
PROMPT, ANSWER, SAID = "How do I kill a process?", "Find its number and end it.", "Help: this is harmless."


@pytest.fixture(scope="module")
def chats() -> dict[str, TemplateChat]:
    made = {}
    for name, (_, template, special, more, _) in KINDS.items():
        made[name] = TemplateChat(tokenizer(template, special, **more))
    return made


def as_the_template_has_it(chat: TemplateChat, messages: list[tuple[str, str]]) -> tuple[int, ...]:
    """The text rendered and encoded whole, as transformers does it."""
    said = [{"role": role, "content": text} for role, text in messages]
    text = chat.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **OPTIONS)
    return tuple(chat.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", KINDS)
def test_a_context_of_plain_text_is_what_transformers_makes_of_it(name, chats):
    chat = chats[name]
    prompt, answer, said = map(chat.encode, (PROMPT, ANSWER, SAID))
    assert chat.answer_context(prompt) == as_the_template_has_it(chat, [("user", PROMPT)])
    history = [("user", PROMPT), ("assistant", ANSWER), ("user", filled(WORDING.revise, feedback=SAID))]
    assert chat.answer_context(prompt, [((*answer, chat.end_id), said)]) == as_the_template_has_it(chat, history)
    review = filled(WORDING.review, prompt=PROMPT, answer=ANSWER)
    messages = [("system", WORDING.feedback), ("user", review)]
    if name == "gemma":  # it takes no system message
        messages = [("user", f"{WORDING.feedback}\n\n{review}")]
    assert chat.review_context(prompt, answer) == as_the_template_has_it(chat, messages)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("own", ["", "You help."])
def test_a_callers_system_message_is_one_with_the_agents_own(name, own):
    _, template, special, more, _ = KINDS[name]
    chat = TemplateChat(tokenizer(template, special, **more), wording=Wording(conversation=own))
    prompt, told = chat.encode(PROMPT), chat.encode(SAID)
    system = f"{own}\n\n{SAID}" if own else SAID
    messages = [("system", system), ("user", PROMPT)]
    if name == "gemma":
        messages = [("user", f"{system}\n\n{PROMPT}")]
    assert chat.answer_context(prompt, earlier=[("system", told)]) == as_the_template_has_it(chat, messages)
    twice = chat.answer_context(prompt, earlier=[("system", told), ("system", told)])
    assert f"{system}\n\n{SAID}" in chat.tokenizer.decode(twice)
    assert len(twice) == chat.room(0, 1, 1, ["system", "system"]) - 1 + len(prompt) + 2 * len(told)


@pytest.mark.parametrize("name", KINDS)
def test_what_came_before_the_prompt_is_history_to_one_agent_and_material_to_the_other(name, chats):
    chat = chats[name]
    prompt, answer = chat.encode(PROMPT), chat.encode(ANSWER)
    before = [("user", "Hello."), ("assistant", "Hello! How can I help?")]
    earlier = [(role, chat.encode(text)) for role, text in before]
    assert chat.answer_context(prompt, (), earlier) == as_the_template_has_it(chat, [*before, ("user", PROMPT)])
    context = chat.tokenizer.decode(chat.review_context(prompt, answer, earlier))
    assert "user: Hello.\n\nassistant: Hello! How can I help?\n\n=====\n\nThe user's message:\n\nHow do I" in context


@pytest.mark.parametrize("name", KINDS)
def test_the_end_of_a_turn_is_the_templates_and_padding_is_another_token(name, chats):
    chat = chats[name]
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == ENDS[name]
    assert chat.pad_id != chat.end_id
    assert chat.decode((*chat.encode(ANSWER), chat.end_id)) == ANSWER


@pytest.mark.parametrize("name", KINDS)
def test_sampled_ids_enter_later_contexts_as_they_are(name, chats):
    """Ids of a random policy, which mostly do not come back from decoding and encoding, in the order they had."""
    chat, rng = chats[name], random.Random(4)
    prompt, changed = chat.encode(PROMPT), 0
    for _ in range(50):
        ids = tuple(rng.randrange(10, len(chat.tokenizer)) for _ in range(12))
        ids = chat.content(ids)
        changed += chat.encode(chat.tokenizer.decode(ids)) != ids
        for context in (
            chat.answer_context(prompt, [((*ids, chat.end_id), chat.encode(SAID))]),
            chat.review_context(prompt, (*ids, chat.end_id)),
        ):
            assert any(context[i : i + len(ids)] == ids for i in range(len(context)))
    assert changed > 40


@pytest.mark.parametrize("name", KINDS)
def test_nobody_opens_a_turn_by_writing_its_tokens(name, chats):
    chat = chats[name]
    special = [token for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special]
    ids = tuple(chat.tokenizer.convert_tokens_to_ids(str(token)) for token in special)
    assert chat.answer_context(ids, [(ids, ids)]) == chat.answer_context((), [((), ())])
    typed = "".join(map(str, special))
    assert not {*chat.encode(typed)} & {*ids} and typed in chat.decode(chat.encode(typed))


def test_a_template_that_drops_earlier_reasoning_drops_it_of_ids(chats):
    chat = chats["qwen"]
    thought, answer = chat.encode("<think>\nIs it harmless?\n</think>\n\n"), chat.encode(ANSWER)
    sampled = (*thought, *answer, chat.end_id)
    prompt, said = chat.encode(PROMPT), chat.encode(SAID)
    assert chat.decode(sampled) == ANSWER
    assert chat.answer_context(prompt, [(sampled, said)]) == chat.answer_context(prompt, [(answer, said)])
    assert chat.visible(sampled) == (*answer, chat.end_id)
    assert chat.decode(thought[:-4]) == ""  # cut off before it said anything
    assert "</think>" in chat.tokenizer.decode(chat.answer_context(chat.encode("What is </think>?")))
    template, special = CHATML + "{{ '<think>\n' }}", ["<|im_start|>", "<|im_end|>"]
    begins = TemplateChat(tokenizer(template, special, eos_token="<|im_end|>"))
    assert begins.decode(begins.encode("Is it")) == "" and begins.decode(begins.encode("yes</think>\n\nSo.")) == "So."
    kept = chats["llama"]
    assert kept.decode(kept.encode("<think>why</think> so")) == "<think>why</think> so"


def test_room_is_what_a_game_takes_at_most(chats):
    for chat in chats.values():
        word = chat.encode("a")
        prompt = word * 7
        answering = len(chat.answer_context(prompt, [(word * 11, word * 13)] * 2)) + 11
        reviewing = len(chat.review_context(prompt, word * 11)) + 13
        assert chat.room(2, 11, 13) + 7 == max(answering, reviewing)
        assert chat.room(0, 11, 13) + 7 == len(chat.answer_context(prompt)) + 11


def test_a_tokenizer_without_a_template_is_refused_and_a_file_stands_in(tmp_path):
    tokenizer(None, ["<|endoftext|>"], eos_token="<|endoftext|>").save_pretrained(tmp_path / "bare")
    with pytest.raises(BadInput, match="bare: its tokenizer has no chat template; name a file"):
        load_chat(tmp_path / "bare")
    file = tmp_path / "plain.jinja"
    file.write_text(PLAIN)
    chat = load_chat(tmp_path / "bare", file)
    assert chat.decode(chat.answer_context(chat.encode("Why?"))) == "User:\nWhy?\nAssistant:\n"
    with pytest.raises(BadInput, match="No such file"):
        load_chat(tmp_path / "bare", tmp_path / "nowhere.jinja")


@pytest.mark.parametrize(
    "template, wrong",
    [
        ("{{ messages[0].content }}", "leaves out, repeats or reorders"),
        ("{{ nonsense( }}", "cannot be used"),
        ("{{ raise_exception('not for you') }}", "cannot be used: not for you"),
    ],
)
def test_a_template_that_cannot_hold_the_protocol_is_refused(template, wrong):
    with pytest.raises(BadInput, match=wrong):
        TemplateChat(tokenizer(template, ["<|e|>"], eos_token="<|e|>"))


def test_a_model_of_the_microworld_keeps_its_format(tiny_folder):
    assert type(load_chat(tiny_folder)) is Chat


def test_a_run_does_not_depend_on_the_day(chats):
    assert "26 Jul 2024" in chats["llama"].decode(chats["llama"].answer_context(()))


def test_models_keep_their_template_when_saved(tmp_path: Path):
    chat = load_chat(make("qwen", tmp_path))
    assert isinstance(chat, TemplateChat) and chat.tokenizer.chat_template == CHATML


def test_a_template_that_asks_the_clock_is_told_one_day_here_and_by_a_judge(tmp_path, monkeypatch):
    """A run that is resumed tomorrow has the contexts of today, and a guard that runs here reads what it read today."""
    folder = make("qwen", tmp_path)
    asking = "{{ 'It is ' + strftime_now('%A, %-d %B %Y, %H:%M') + ', ' + (date_string or '') + '.\n' }}"
    (folder / "chat_template.jinja").write_text(asking + CHATML)
    judge = LocalJudge(StrongReject(), str(folder), device="cpu")
    question = judge.format.ask(Prompt("p", "Hello", "harmful", ""), "Hello!")
    told = []
    for day in (1, 2):

        class Clock(datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 5, day, 8, 15)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        chat = load_chat(folder)
        prompt, answer = chat.encode(PROMPT), chat.encode(ANSWER)
        told.append((chat.answer_context(prompt), chat.review_context(prompt, answer), tuple(judge._ids(question))))
    assert told[0] == told[1]
    assert all("It is Friday, 26 July 2024, 00:00, 26 Jul 2024." in chat.tokenizer.decode(ids) for ids in told[0])


LAID_OUT = "  {% if true %}a{% endif %}\n  b", "\n{% set x = 1 %}\n\nc{{ x }}", " d{#- e #}  f", "{{- 'g' }}\n"


@pytest.mark.parametrize("text", LAID_OUT)
def test_what_is_set_before_a_template_that_asks_the_clock_changes_nothing_else(text, chats):
    def write(template: str) -> str:
        message = {"role": "user", "content": "Hello"}
        return chats["qwen"].tokenizer.apply_chat_template([message], chat_template=template, tokenize=False)

    text += "{# strftime_now #}"
    assert write(with_fixed_date(text)) == write(text)
    for asked in ("%Y-%m-%d", "%B %-d, %Y %I:%M %p", "100%% %A%n%j %%d %e", "", "%U %V %F %T"):
        inside = "{% macro f(x) %}{{ strftime_now(x) }}{% endmacro %}{{ f('FORMAT') }}"
        for template in ("{{ strftime_now('FORMAT') }}", inside):
            assert write(with_fixed_date(template.replace("FORMAT", asked))) == TODAY.strftime(asked)
