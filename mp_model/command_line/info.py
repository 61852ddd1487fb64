"""``magic-pyramid info``: the settings of a saved model, and how it will run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import check_model_folder
from .options import PRECISION_HELP

if TYPE_CHECKING:
    from ..modelling import PyramidForSequenceClassification

# A model's answers, by the task of its configuration.
ANSWERS = {
    "single_label_classification": "one label for a text",
    "multi_label_classification": "any of the labels for a text, each by itself",
    "regression": "a value for a text",
}


def info(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model and its tokenizer.")],
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Describe a saved model: its labels, pruning and exits, and the form in which each layer runs here.

    A layer runs in prepared form, with packed weights and fused steps, where its weights say everything; otherwise in module
    form, which calls the model's own modules, and the reason is given.

    Examples:

        magic-pyramid info demo-output/model

        magic-pyramid info demo-output/model --json
    """
    check_model_folder(model)

    from mp_kernels.info import describe

    from ..serving.classifier import Classifier

    classifier = Classifier.load(model, precision, device)
    entries = {
        **describe(),
        **describe_model(classifier.model),
        "precision": f"{classifier.precision.name}, since {classifier.precision.why}",
        "longest text": f"{classifier.tokenise.max_length} tokens",
    }
    if as_json:
        print(json.dumps(entries, allow_nan=False))
        return
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:<{width}}  {value}")


def describe_model(model: PyramidForSequenceClassification) -> dict[str, Any]:
    """Settings of a model, and the form in which its layers run for inference, by name."""
    import torch

    from ..backbones import why_layer_modules

    config = model.config
    with torch.inference_mode():
        reasons = {"embeddings": model.backbone.why_embedding_modules(model.base_model, model.device)}
        for number, layer in enumerate(model.base_model.stack, 1):
            reasons[f"layer {number}"] = why_layer_modules(layer, model.device)
    modules = {name: why for name, why in reasons.items() if why is not None}
    return {
        "model": f"{config.num_hidden_layers} layers of width {config.hidden_size}",
        "answers": ANSWERS[config.task],
        "labels": ", ".join(config.label_names),
        "positions": config.positions,
        **settings_of(config),
        "prepared form": f"{len(reasons) - len(modules)} of {len(reasons)} parts",
        "module form": "; ".join(f"{name}, since {why}" for name, why in modules.items()) or "none",
    }


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a model's pruning and exits, by name."""
    return {
        "pruning": _pruning(config),
        "exit heads": _heads(config),
        "exit threshold": "none: exits are closed" if config.exit_threshold is None else config.exit_threshold,
        **({"uncertainty": _uncertainty(config)} if config.confidence_heads else {}),
        **({} if config.depth is None else {"depth": f"everybody leaves by layer {config.depth}"}),
    }


def _heads(config: Any) -> str:
    heads = f"{config.exit_head}, at layers {', '.join(map(str, config.resolved_exit_layers())) or 'none'}"
    why = config.why_untrained()
    return heads if why is None else f"{heads}; {why}"


def _uncertainty(config: Any) -> str:
    if config.exit_uncertainty == "disagreement":
        return f"disagreement, the probability of another answer at layer {config.num_hidden_layers}"
    return f"{config.exit_uncertainty}; there are confidence heads too"


def _pruning(config: Any) -> str:
    if config.top_k is not None:
        return f"the most important tokens, by layer: {config.top_k}"
    thresholds = config.resolved_thresholds()
    if thresholds is None or not any(thresholds):
        return "none"
    by_layer = ", ".join(f"{x:.3g}" for x in thresholds)
    return f"thresholds by layer: {by_layer}; importance over {config.importance_normalizer}"
