"""``magic-pyramid doctor``: what can be used here, and whether a saved model is as it should be, in sentences."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .info import ANSWERS, describe_model
from .options import PRECISION_HELP

if TYPE_CHECKING:
    from ..modelling import PyramidForSequenceClassification
    from ..serving.classifier import Classifier

FINE, NOTE, WRONG = "fine", "note", "wrong"
NEW_THRESHOLD = "choose it anew with `magic-pyramid tune`"


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        about: ``"installation"``, ``"processor"`` or ``"model"``.
        verdict: ``"fine"``; ``"note"``: it may be as somebody wants it; ``"wrong"``: it should be mended.
        says: a sentence.
    """

    about: str
    verdict: str
    says: str


def doctor(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of a saved model and its tokenizer, or of a fit; none if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device that models are to run on.")] = "cpu",
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say in sentences what is built and usable here, and whether a saved model loads, answers, and is tuned as it runs.

    Exit status 0 where nothing is wrong, else 1. **magic-pyramid info** prints the settings of a model.

    Examples:

        magic-pyramid doctor

        magic-pyramid doctor demo-output/model

        magic-pyramid doctor demo-output/model --json
    """
    from ..serving.classifier import check_device

    check_device(device)
    findings = [*of_installation(), *of_processor(device)]
    if folder is not None:
        findings += of_folder(folder, device, precision)
    wrong = sum(finding.verdict == WRONG for finding in findings)
    if as_json:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        about = None
        for finding in findings:
            if finding.about != about:
                about = finding.about
                print(f"{about}: {folder}" if about == "model" else about)
            print(f"  {finding.verdict:<5}  {finding.says}")
        print("Nothing is wrong." if not wrong else f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong.")
    if wrong:
        raise typer.Exit(1)


def of_installation() -> Iterator[Finding]:
    """The kernels that are built, and the libraries and GPUs that are there."""
    from mp_kernels import extension
    from mp_kernels.info import describe

    found = describe()
    yield Finding(
        "installation",
        FINE,
        f"magic-pyramid {found['magic-pyramid']} runs on Python {found['python']}, torch {found['torch']} and transformers "
        f"{found['transformers']}.",
    )
    used, runnable = extension.chosen_instruction_set(), extension.instruction_sets()
    if used is None:
        yield Finding(
            "installation",
            WRONG,
            "The compiled kernels are missing, so everything runs through plain PyTorch, many times slower; install a C++ "
            "compiler, and then the package anew.",
        )
    elif used != runnable[0]:
        yield Finding(
            "installation",
            NOTE,
            f"The compiled kernels run for {used}, since MP_KERNELS_ISA says so; {runnable[0]} would be faster.",
        )
    else:
        yield Finding("installation", FINE, f"The compiled kernels run for {used}, the best that this processor can.")
    if found["cuda devices"] == "none":
        yield Finding("installation", NOTE, "PyTorch sees no GPU; models run on the processor.")
    elif found["triton"] == "not installed" and not extension.is_cuda_built():
        yield Finding("installation", WRONG, f"There is a GPU, {found['cuda devices']}, and no Triton; install it.")
    else:
        kernels = "compiled CUDA kernels" if extension.is_cuda_built() else f"Triton {found['triton']}"
        yield Finding("installation", FINE, f"There is a GPU, {found['cuda devices']}; its kernels are {kernels}.")


def of_processor(device: str) -> Iterator[Finding]:
    """The processor's abilities, and the precisions that pay on a device."""
    import torch

    from ..checkpoints.precisions import PRECISIONS, why_unfit

    abilities = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX-512": torch.cpu._is_avx512_supported(),
        "VNNI": torch.cpu._is_vnni_supported(),
        "AVX-512 BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    has = (
        ", ".join(name for name, there in abilities.items() if there)
        or "none of the vector extensions that are asked for"
    )
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "processor",
        FINE,
        f"{cores} processors may be used, with {has}; PyTorch uses {torch.get_num_threads()} threads.",
    )
    for name in PRECISIONS:
        why = why_unfit(name, device)
        if why is None:
            yield Finding("processor", FINE, f"{name} can be used on {device}.")
        else:
            yield Finding("processor", NOTE, f"{name} is refused on {device}: {why}.")


def of_folder(folder: Path, device: str, precision: str) -> Iterator[Finding]:
    """A saved model: whether it loads and answers, what it is, and how it will run."""
    from ..checkpoints.tuned_for import TunedForOtherWarning
    from ..serving.classifier import Classifier

    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        yield Finding("model", NOTE, f"This is the folder of a fit; its model is {folder / 'model'}.")
        folder = folder / "model"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TunedForOtherWarning)  # it has a sentence of its own
            classifier = Classifier.load(folder, precision, device)
            text = "Does it answer?"
            (answer,) = classifier([(text, text) if classifier.reads_pairs else text])
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        yield Finding("model", WRONG, f"{' '.join(str(error).split())}.")
        return
    yield Finding("model", FINE, f"It loads, and answers a text after layer {answer.exit_layer}.")
    yield from of_model(classifier)


def of_model(classifier: Classifier) -> Iterator[Finding]:
    """A model that answers: what it is, and how it will run."""
    from ..data.labels import is_nameless
    from ..data.values import listed

    config, found = classifier.model.config, describe_model(classifier.model)
    yield Finding(
        "model", FINE, f"It has {found['model']}, and gives {ANSWERS[config.task]}: {listed(config.label_names, 12)}."
    )
    if is_nameless(config.label_names):
        yield Finding("model", NOTE, "Its labels have no names; give them as id2label in config.json.")
    yield Finding("model", FINE, f"It reads texts of up to {classifier.tokenise.max_length} tokens.")
    yield Finding("model", FINE, f"It runs in {classifier.precision.name}, since {classifier.precision.why}.")
    if classifier.precision.advice is not None:
        yield Finding("model", NOTE, classifier.precision.advice)
    if found["module form"] == "none":
        yield Finding(
            "model", FINE, f"All its {found['prepared form'].split()[-2]} parts run in prepared form, the fast one."
        )
    else:
        yield Finding("model", NOTE, f"Some of it runs in module form, which is slower: {found['module form']}.")
    prunes = found["pruning"] != "none"
    yield Finding(
        "model",
        FINE if prunes else NOTE,
        f"It prunes tokens: {found['pruning']}." if prunes else "It prunes no tokens.",
    )
    if config.depth is not None:
        layers = config.num_hidden_layers
        yield Finding(
            "model", FINE, f"Everybody leaves by layer {config.depth} of {layers}; the layers above are not loaded."
        )
    yield of_exits(classifier.model, classifier.tokenise.max_length)


def of_exits(model: PyramidForSequenceClassification, max_length: int) -> Finding:
    """A model's exits: whether they are trained, open, and tuned for the model as it is."""
    from ..checkpoints.tuned_for import differences

    config = model.config
    if not config.resolved_exit_layers():
        return Finding("model", NOTE, "It has no exits: every text goes through all layers.")
    untrained = config.why_untrained()
    if untrained is not None:
        return Finding("model", NOTE, f"Its exits stay closed: {untrained}.")
    if config.exit_threshold is None:
        return Finding("model", NOTE, "Its exits are closed; `magic-pyramid tune` chooses a threshold.")
    changed, record = differences(model, max_length), config.tuned_for
    if changed:
        return Finding("model", WRONG, f"Its exit threshold was tuned for {', '.join(changed)}; {NEW_THRESHOLD}.")
    if record is None or record.get("exit_threshold") != config.exit_threshold:
        return Finding(
            "model", NOTE, f"Its exit threshold, {config.exit_threshold}, was set by hand; nobody knows what it costs."
        )
    return Finding("model", FINE, f"Its exit threshold still holds: {_tuning(record)}.")


def _tuning(record: dict[str, Any]) -> str:
    """What a threshold was tuned on and for, for people."""
    goals = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in (record.get("goal") or {}).items())
    return f"it was tuned on {record.get('texts')} texts" + (f" for {goals}" if goals else "")
