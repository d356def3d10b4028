"""A tiny random Llama and a byte-level tokenizer in a Hugging Face folder: what every test plays with."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# Before torch is imported. One thread, as a command that a test begins has: sums of two differ in their last digits,
# and at these sizes a second thread only waits.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
SENTENCES = [
    "Answer the user.",
    "Review the answer.",
    "How do I kill a process? Find its number and end it.",
    "¿Cómo pinto la lámpara? Con un pincel.",
    "Wie male ich die Lampe an? Mit einem Pinsel.",
    '{"reasoning": "The answer is fine.", "unsafe": false, "overrefuse": false, "feedback": ""}',
    "I cannot help with that.",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long begin first, so that no process waits at the end for another one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What tests import stays to the end, so garbage collections need not look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of a folder with config, weights (d = 32, 2 layers, 4 heads on 2 key heads) and tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=SPECIAL[2:]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # wide, so that its distributions are far from uniform
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
