"""A tiny WordPiece tokenizer, made here, that knows every lower-case word as letters and a few words whole."""

from __future__ import annotations

import random

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]"),
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *("the", "rate", ".", ",", "!"),
]


def tokenizer(max_length: int = 64) -> PreTrainedTokenizerFast:
    """BERT's own steps: lower case, words and punctuation apart, pieces, ``[CLS]`` and ``[SEP]``."""
    ids = {piece: i for i, piece in enumerate(VOCABULARY)}
    built = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer(lowercase=True)
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=built, model_max_length=max_length, model_input_names=names, **special
    )


def texts(count: int, seed: int = 0) -> list[str]:
    """Random texts of 0 to 50 words of one to three letters: from ``[CLS] [SEP]`` alone to longer than 64 tokens."""
    generator = random.Random(seed)
    return [
        " ".join(
            "".join(generator.choices(LETTERS, k=generator.randint(1, 3))) for _ in range(generator.randint(0, 50))
        )
        for _ in range(count)
    ]
