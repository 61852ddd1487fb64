"""The tokenizer of a checkpoint, and how long its texts may be."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tokenizers import processors

from ..configuration import PyramidConfig
from .configurations import read_config
from .files import TOKENIZER, why_unreadable

TYPES = "token_type_ids"
LEAST_SHARE = 0.5  # of the model's vocabulary, that its tokenizer knows; padding of the vocabulary adds far less


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The tokenizer of a checkpoint, a folder or a name on a hub; code that the checkpoint brings is never run.

    A folder without ``tokenizer.json`` is read as for the model's backbone. For BERT ``vocab.txt`` alone is enough, and
    texts are put into lower case unless ``tokenizer_config.json`` says ``"do_lower_case": false``.

    Raises:
        ValueError: a tokenizer that cannot be had without such code, cannot be read, or is not that of the checkpoint's
            model: it has token ids that the model has not, or knows less than half of its vocabulary.
    """
    from transformers import AutoTokenizer

    config = read_config(checkpoint)
    # The kind of model decides the kind of tokenizer where no file does.
    unsaid = Path(checkpoint).is_dir() and not (Path(checkpoint) / "tokenizer.json").is_file()
    kind = {"config": config.backbone.config()} if unsaid else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False, **kind)
    except Exception as error:  # the tokenizers library raises nothing narrower
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"the tokenizer of {checkpoint} wants to run code of its own (auto_map in tokenizer_config.json), which is "
                "refused; give a checkpoint whose tokenizer is one of transformers' own"
            ) from error
        why = why_unreadable(checkpoint, TOKENIZER) or f"the tokenizer of {checkpoint} cannot be read; copy it again"
        raise ValueError(why) from error
    _check_vocabulary(tokenizer, config, checkpoint)
    if unsaid:
        _check_special_tokens(tokenizer, Path(checkpoint) / "vocab.txt")
    say_types(tokenizer, config)
    return tokenizer


def say_types(tokenizer: Any, config: PyramidConfig) -> None:
    """Lets a tokenizer give the token types that a model reads, or none.

    The model says whether it tells the texts of a pair apart by types, not the tokenizer, which may be a generic one. Where
    exits compare two texts they must be told apart, and a tokenizer that gives both type 0, such as RoBERTa's, is changed to
    give the second one type 1, in all that is made with it and in what it is saved as.

    Raises:
        ValueError: a tokenizer that cannot be changed so.
    """
    others = [name for name in tokenizer.model_input_names if name != TYPES]
    tokenizer.model_input_names = others if config.token_types == 1 else [*others, TYPES]
    if not config.reads_pairs:
        return
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # it is saved with these
    if any(tokenizer("a", "a", return_token_type_ids=True)[TYPES]):
        return
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "exits that compare two texts (exit_head='pair') need a tokenizer that tells them apart by token_type_ids, or "
            "a fast one; give the checkpoint a tokenizer.json, or fit it with a recipe of other exits, such as mp"
        )
    _mark_second_texts(tokenizer.backend_tokenizer)


def _mark_second_texts(backend: Any) -> None:
    """Makes a tokenizer of the tokenizers library give type 1 to second texts and the special tokens that follow them."""
    plain = copy.deepcopy(backend)
    plain.no_padding()
    plain.no_truncation()
    special: dict[int, dict[str, Any]] = {}
    templates: list[list[str]] = []
    for texts in (("a",), ("a", "a")):
        made, pieces, side = plain.encode(*texts), [], 0
        for number, token, text in zip(made.ids, made.tokens, made.sequence_ids, strict=True):
            if text is None:
                known = special.setdefault(number, {"id": f"special{number}", "ids": [number], "tokens": [token]})
                pieces.append(f"{known['id']}:{side}")
            elif f"${'AB'[text]}:{text}" not in pieces:
                side = text
                pieces.append(f"${'AB'[text]}:{text}")
        templates.append(pieces)
    made_from: Any = processors.TemplateProcessing
    template, before = made_from(*templates, list(special.values())), backend.post_processor
    trims = before is not None and b'"trim_offsets":true' in before.__getstate__()  # the spaces before words
    backend.post_processor = processors.Sequence([processors.ByteLevel(), template]) if trims else template


def _check_special_tokens(tokenizer: Any, vocabulary: Path) -> None:
    """Raises ValueError for a vocabulary without the tokens that are put around texts, which would get other ids."""
    if not vocabulary.is_file():
        return
    known = set(vocabulary.read_text(encoding="utf-8-sig").splitlines())
    missing = [token for token in (tokenizer.cls_token, tokenizer.sep_token, tokenizer.unk_token) if token not in known]
    if missing:
        raise ValueError(
            f"{vocabulary} has no {', '.join(missing)}, so that the model would get ids that it was not trained with; put "
            "the whole vocabulary of the checkpoint into the folder"
        )


def _check_vocabulary(tokenizer: Any, config: PyramidConfig, checkpoint: str | Path) -> None:
    """Raises ValueError for a tokenizer whose ids are not those of the model's embeddings."""
    known, embedded = len(tokenizer), config.vocab_size
    if known < LEAST_SHARE * embedded:
        raise ValueError(
            why_unreadable(checkpoint, TOKENIZER)
            or f"{checkpoint} has no tokenizer, or another model's: it knows {known} tokens, and the model's vocabulary has "
            f"{embedded}; put the tokenizer of the checkpoint that the model was made from into the folder"
        )
    highest = max(set(tokenizer.get_vocab().values()).difference(tokenizer.all_special_ids))
    if highest >= embedded:  # of a special token: refused if a text has it, and packed batches need no [PAD]
        raise ValueError(
            f"the tokenizer of {checkpoint} has ids up to {highest}, and the model's vocabulary has {embedded} tokens; put "
            "the tokenizer that the model was trained with into the folder, or give the model rows for the new tokens with "
            "resize_token_embeddings"
        )


def max_length_of(tokenizer: Any, config: PyramidConfig) -> int:
    """Tokens of a text at most: the tokenizer's ``model_max_length`` where that is set, and never more than the positions.

    Raises:
        ValueError: it is no number, or the tokenizer's own tokens, [CLS] and [SEP], leave no room for a text.
    """
    positions, own = config.positions, getattr(tokenizer, "model_max_length", None)
    if not isinstance(own, int | float | None) or own != own:
        raise ValueError(
            f"the tokenizer's model_max_length is {own!r}; set it to a number of tokens in tokenizer_config.json"
        )
    if own is None or own >= positions:  # unset, it is a huge number
        return positions
    special = tokenizer.num_special_tokens_to_add()
    if own <= special:
        raise ValueError(
            f"the tokenizer's model_max_length is {own}, and {special} tokens are the tokenizer's own; "
            f"set it to {special + 1} or more in tokenizer_config.json"
        )
    return int(own)
