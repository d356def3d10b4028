"""The chat format of a model's folder: the microworld's, or that of a chat template."""

from __future__ import annotations

from pathlib import Path

from choreo.config.wording import DEFAULT, Wording
from choreo.errors import BadInput, first_line
from choreo.models import model_folder
from choreo.models.chat import TOKENS, Chat
from choreo.models.template import TemplateChat, template_of


def load_chat(
    folder: str | Path,
    template: str | Path = "",
    setting: str = "template in the recipe",
    rounds: int = 1,
    wording: Wording = DEFAULT,
) -> Chat:
    """The chat of the model in `folder`: `Chat` where its tokenizer has the microworld's tokens, else `TemplateChat`.

    template: a file with a chat template (Jinja) to use, or the name of one of the tokenizer's templates; "" is the
    tokenizer's own. setting: where a user sets `template`, for messages. rounds: how many rounds of feedback the
    template must be able to hold. wording: what the agents are told.

    Raises BadInput for a folder without a tokenizer, with the tokenizer of another model, with neither the microworld's
    tokens nor a template, or with a template that cannot be used.
    """
    tokenizer = model_folder.tokenizer(folder)
    try:
        chat: Chat
        if not template and set(TOKENS) <= tokenizer.get_vocab().keys():
            chat = Chat(tokenizer, wording)
        else:
            chat = TemplateChat(tokenizer, template_of(tokenizer, str(template), setting), rounds, wording)
        written = {chat.end_id, chat.pad_id, *chat.answer_context(()), *chat.review_context((), ())}
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(f"{folder}: {first_line(error, 1000)}") from None
    model_folder.check_ids(folder, tokenizer, written)
    return chat
