"""``magic-pyramid convert``: a saved model in, one in another precision out, for inference alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .loading import check_model_folder


def convert(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model and its tokenizer.")],
    output: Annotated[Path, typer.Argument(help="Folder for the converted one: a new one.")],
    precision: Annotated[str, typer.Option(help="Precision of its weights: int8, bfloat16 or float32.")] = "int8",
    as_json: Annotated[bool, typer.Option("--json", help="Print the sizes as JSON.")] = False,
) -> None:
    """Save a model in the precision that it will run in: smaller on disk, sooner loaded, never in float32 in memory.

    Answers are those of the model loaded with **--precision**, bit by bit. In int8 linear layers and word embeddings are
    rounded, with a scale for each row; heads stay in float32. The converted model cannot be trained, so keep the first one.

    Examples:

        magic-pyramid convert demo-output/model demo-output/int8

        magic-pyramid convert demo-output/model demo-output/half --precision bfloat16
    """
    check_model_folder(model)

    from ..checkpoints.precisions import PRECISIONS
    from ..checkpoints.reading import read_in_precision
    from ..checkpoints.saving import bytes_of_weights, check_new, save_for_inference
    from ..checkpoints.tokenizers import load_tokenizer, max_length_of
    from ..checkpoints.tuned_for import warn_where_it_no_longer_holds
    from ..data.files import check_folder

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {precision!r}")
    check_folder(output)
    check_new(output)
    found, tokenizer = read_in_precision(model, precision), load_tokenizer(model)
    save_for_inference(found, output, tokenizer)
    before, after = bytes_of_weights(model), bytes_of_weights(output)
    if as_json:
        print(json.dumps({"precision": precision, "bytes_before": before, "bytes": after}))
    else:
        share = f"{after / before:.2f} of the {before / 1e6:.1f} MB before"
        print(f"{output}: {precision}, {after / 1e6:.1f} MB of weights, {share}")
    warn_where_it_no_longer_holds(found, max_length_of(tokenizer, found.config))
