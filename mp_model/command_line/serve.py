"""``magic-pyramid serve``: a saved model behind HTTP."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..serving.settings import WAITING, ServerSettings
from .loading import check_model_folder
from .options import takes_dataclasses

if TYPE_CHECKING:
    from ..data.batches import Text
    from ..serving.classifier import Classifier


@takes_dataclasses
def serve(
    *,
    folder: Annotated[
        Path, typer.Argument(help="Folder of a saved model and its tokenizer.", envvar="MAGIC_PYRAMID_FOLDER")
    ],
    settings: ServerSettings,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with a model of its own, by Ray; left out: this one.")
    ] = None,
) -> None:
    """Serve a saved model over HTTP, on this machine only unless --host says otherwise.

    The routes are those of text-embeddings-inference, **/predict** first of all, and vLLM's **/classify**; **/** shows a
    page, and **/docs** describes all of them. Requests of many clients share the layers of the model, and a lone request is
    answered at once. Each option has an environment variable. SIGTERM answers what was accepted, and ends.

    Examples:

        magic-pyramid serve demo-output/model

        magic-pyramid serve demo-output/model --port 9000 --threads 2 --timeout-ms 500

        MAGIC_PYRAMID_API_KEY=secret magic-pyramid serve demo-output/model --host 0.0.0.0 --audit 0.01

        magic-pyramid serve demo-output/model --replicas 4
    """
    check_model_folder(folder)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a server needs {error.name}, which is not installed: pip install 'magic-pyramid[serve]'"
        ) from error
    for name, value in WAITING.items():  # read when torch is imported, so set before
        os.environ.setdefault(name, value)
    if replicas is not None:
        from ..serving import ray_serve

        ray_serve.run(folder, settings, replicas, shaded)
        return

    from ..serving.classifier import Classifier
    from ..serving.running import bound_socket, run, set_up_logs
    from ..serving.service import Service
    from ..serving.telemetry import tracer_of

    tracer = tracer_of()
    set_up_logs(settings.json_logs, settings.log_requests)
    with contextlib.closing(bound_socket(settings)) as bound:
        classifier = Classifier.load(folder, settings.precision, settings.device, settings.threads)
        name = settings.model_id or folder.resolve().name
        run(Service(classifier, settings, name, shaded), bound, tracer)


def shaded(classifier: Classifier, text: Text, exit_threshold: Any) -> dict[str, Any]:
    """The words of a text, or of a pair, with the number of layers that each went through, and the answer."""
    from ..reporting.shading import shade_answer

    found = shade_answer(classifier.model, classifier.tokenizer, text, exit_threshold)
    (answer,) = classifier([text], exit_threshold)
    return {
        "words": found.words,
        "reached": found.reached,
        "layers": found.layers,
        "exit_layer": answer.exit_layer,
        "uncertainty": answer.uncertainty,
        "tokens": answer.tokens,
        "flops": answer.flops,
        "predictions": sorted(
            ({"label": label, "score": score} for label, score in answer.scores.items()),
            key=lambda prediction: -float(prediction["score"]),
        ),
    }
