"""What the agents are told is a setting: it stands around the very ids of contents, in checkpoints, and in exports."""

from __future__ import annotations

import pytest
from architectures import make

from choreo import config
from choreo.agents.base import State
from choreo.agents.endpoint import messages
from choreo.agents.local import context_of
from choreo.config.wording import Wording, filled
from choreo.errors import BadInput
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.waltz.method import protocol
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.load import load_chat
from choreo.models.template import OPTIONS
from choreo.types import AGENTS, Prompt, TextTurn

SAID = Wording(
    conversation="Be {brief}.",
    feedback="You review.",
    review="Asked: {prompt}\nAnswered: {answer}\nReview {it}.",
    revise="{feedback}\nAnswer my message again.",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_folder):
    return {"micro": tiny_folder, "qwen": make("qwen", tmp_path_factory.mktemp("qwen"))}


@pytest.mark.parametrize("name", ["micro", "qwen"])
def test_the_words_stand_around_the_very_ids(name, folders):
    chat = load_chat(folders[name], wording=SAID)
    prompt, answer, note = (50, 51), (60, 61, 60), (70, 70, 71)  # ids that no text is encoded to
    context = chat.answer_context(prompt, [(answer, note)])
    text = chat.tokenizer.decode(context)
    assert "Be {brief}." in text and "Answer my message again." in text
    assert all(any(context[i : i + len(ids)] == ids for i in range(len(context))) for ids in (prompt, answer, note))
    review = chat.tokenizer.decode(chat.review_context(chat.encode("Hi?"), chat.encode("No {answer}.")))
    assert "You review." in review and "Asked: Hi?\nAnswered: No {answer}.\nReview {it}." in review
    plain = load_chat(folders[name])
    more = len(chat.answer_context((), [((), ())] * 2)) - len(plain.answer_context((), [((), ())] * 2))
    assert chat.room(2, 9, 0, agents=["conversation"]) - plain.room(2, 9, 0, agents=["conversation"]) == more


def test_the_messages_of_an_export_make_the_contexts_of_training(folders):
    chat = load_chat(folders["qwen"], wording=SAID)
    recipe = WaltzRecipe.model_validate({"protocol": {"wording": SAID.model_dump(), "constrained": True}})
    exported = protocol(recipe, dict.fromkeys(AGENTS, chat))
    assert exported["wording"] == SAID.model_dump() and exported["constrained"]
    contents = {"prompt": "Hi?", "answer": "No.", "feedback": "Say yes."}
    sent = exported["messages"]

    def ids(parts):
        said = [m | {"content": filled(m["content"], **contents)} for m in parts]
        text = chat.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **OPTIONS)
        return tuple(chat.tokenizer.encode(text, add_special_tokens=False))

    state = State(Prompt("p", "Hi?", "benign", ""), ((TextTurn("conversation", 0, "No.", True), "Say yes."),))
    assert context_of(chat, state, 99) == ids([*sent["answer"], *sent["revise"]])
    assert chat.review_context(chat.encode("Hi?"), chat.encode("No.")) == ids(sent["review"])
    assert [m["content"] for m in messages(state, SAID)] == [
        *("Be {brief}.", "Hi?", "No.", "Say yes.\nAnswer my message again.")
    ]


def test_an_agent_is_held_to_the_words_that_it_was_trained_with(folders):
    for name, folder in folders.items():
        plain, other = load_chat(folder), load_chat(folder, wording=Wording(revise="{feedback} Again."))
        assert plain.frame.keys() == {"end_id", "digest"}, name  # as checkpoints of before have it
        plain.check_frame(load_chat(folder, wording=Wording(revise=plain.own.revise)).frame, "here")
        for trained, now in ((plain, other), (other, plain)):
            with pytest.raises(BadInput, match="here: was trained with other prompts of its agents than the recipe"):
                now.check_frame(trained.frame, "here")


def test_words_without_their_contents_are_refused_where_they_stand(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[protocol.wording]\nfeedback = "Review."\nreview = "{answer} to {prompt}"\n')
    with pytest.raises(
        BadInput, match=r"mine.toml:3: protocol.wording.review: must have \{prompt\} and then \{answer\}"
    ):
        config.load(file)
    with pytest.raises(BadInput, match=r"--set .*: protocol.wording.revise: must have \{feedback\}, once each"):
        config.load("waltz", ["protocol.wording.revise=Again."])
    told = config.load("macpo", ["writing.system=Answer."])
    assert isinstance(told, MacpoRecipe) and told.writing.system == "Answer."
