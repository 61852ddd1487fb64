"""The ways to classify a padded batch: other engines with the settings that their documentation calls best, and ours."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp_kernels.memory import keep_freed_memory
from mp_model.checkpoints.configurations import read_config
from mp_model.checkpoints.precisions import PRECISIONS, choose_precision
from mp_model.checkpoints.reading import read_in_precision

from .files import ModelFiles

OURS = "ours"
REFERENCE = "transformers, float32"
# transformers imports torchao wherever it is installed, so it has a folder of its own and is found only when its turn comes.
APART = Path(__file__).parents[2] / ".venv" / "torchao"

Classify = Callable[[dict[str, Tensor]], Tensor]


@dataclass
class Loaded:
    """A way that is ready.

    Attributes:
        classify: logits ``[batch, labels]`` of a padded batch.
        weight_bytes: bytes of its weights as they are saved.
    """

    classify: Classify
    weight_bytes: Callable[[], int]


@dataclass(frozen=True)
class Way:
    """An engine in a precision.

    Attributes:
        engine: name of the engine.
        precision: one of :data:`PRECISIONS`.
        settings: the settings that it runs with, for people.
        load: makes it ready for a number of threads.
        prepare: makes the files that it reads.
        packages: packages besides torch and transformers, as they are imported.
    """

    engine: str
    precision: str
    settings: str
    load: Callable[[ModelFiles, int], Loaded]
    prepare: Callable[[ModelFiles], Any]
    packages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name in the document."""
        return f"{self.engine}, {self.precision}"

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if not is_installed(package)]


def is_installed(package: str) -> bool:
    """Whether a package can be imported, from the folder of its own too."""
    return importlib.util.find_spec(package) is not None or (APART / package).is_dir()


def _saved_bytes(model: torch.nn.Module) -> int:
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    return saved.getbuffer().nbytes


def _file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _in_torch(model: torch.nn.Module, compiled: bool = False) -> Loaded:
    """A model of transformers or ours; torch.compile takes the settings of the environment, freezing among them."""
    run: Callable[..., Any] = model
    if compiled:
        torch._dynamo.config.recompile_limit = 64  # models of one class share it, and this process has several
        run = torch.compile(model, dynamic=True, fullgraph=True)
    return Loaded(lambda batch: run(**batch).logits.float(), lambda: _saved_bytes(model))


def _transformers(dtype: torch.dtype, compiled: bool) -> Callable[[ModelFiles, int], Loaded]:
    return lambda files, threads: _in_torch(files.stock(dtype), compiled)


def _torchao(files: ModelFiles, threads: int) -> Loaded:
    if APART.is_dir():
        sys.path.append(str(APART))
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = files.stock()
    quantize_(model, Int8DynamicActivationInt8WeightConfig(version=2))
    return _in_torch(model, compiled=True)


def _onnxruntime(path_of: Callable[[ModelFiles], Path]) -> Callable[[ModelFiles, int], Loaded]:
    def load(files: ModelFiles, threads: int) -> Loaded:
        import onnxruntime

        path = path_of(files)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {x.name for x in session.get_inputs()}

        def classify(batch: dict[str, Tensor]) -> Tensor:
            inputs = {name: x.numpy() for name, x in batch.items() if name in names}
            return torch.from_numpy(session.run(None, inputs)[0])

        return Loaded(classify, lambda: _file_bytes(path.parent))

    return load


def _openvino(path_of: Callable[[ModelFiles], Path], hint: str) -> Callable[[ModelFiles, int], Loaded]:
    def load(files: ModelFiles, threads: int) -> Loaded:
        import openvino

        path = path_of(files)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        compiled = openvino.Core().compile_model(path, "CPU", settings)

        def classify(batch: dict[str, Tensor]) -> Tensor:
            answers = compiled({name: x.numpy() for name, x in batch.items()}, share_inputs=True)
            return torch.from_numpy(answers[0]).float()

        return Loaded(classify, lambda: _file_bytes(path.parent))

    return load


def _ours(precision: str) -> Callable[[ModelFiles, int], Loaded]:
    def load(files: ModelFiles, threads: int) -> Loaded:
        folder = files.ours_int8 if precision == "int8" else files.weights
        choose_precision(precision, read_config(folder), "cpu")  # which refuses what this processor computes slowly
        return _in_torch(read_in_precision(folder, precision).eval())

    return load


def _prepare_ours(precision: str) -> Callable[[ModelFiles], Any]:
    return lambda files: files.ours_int8 if precision == "int8" else files.weights


def ways() -> dict[str, Way]:
    """All ways, by name, the reference first."""
    half = torch.cpu._is_avx512_bf16_supported()
    rest = "bf16" if half else "f32"
    sdpa = "scaled-dot-product attention, padded"
    compiled = f"{sdpa}; torch.compile(dynamic=True, fullgraph=True), inductor with freezing"
    onnx = (
        "exported with attention written out; onnxruntime.transformers.optimizer, model_type bert; all graph "
        "optimisations, intra-op threads as said, one inter-op thread, no spinning (other engines wait beside it)"
    )
    intel = "converted from transformers; PERFORMANCE_HINT LATENCY, one stream, INFERENCE_PRECISION_HINT"
    tensors, stock, onnx_file, intel_file = (
        ("float32", "bfloat16"),
        lambda files: files.weights,
        lambda files: files.onnx,
        lambda files: files.openvino,
    )
    found = [
        *(Way("transformers", x, sdpa, _transformers(getattr(torch, x), False), stock) for x in tensors),
        *(Way("transformers compiled", x, compiled, _transformers(getattr(torch, x), True), stock) for x in tensors),
        Way("ONNX Runtime", "float32", onnx, _onnxruntime(onnx_file), onnx_file, ("onnx", "onnxruntime")),
        Way(
            "ONNX Runtime",
            "int8",
            f"{onnx}; quantize_dynamic of the fused graph, per_channel, QInt8 weights, QUInt8 activations",
            _onnxruntime(lambda files: files.onnx_int8),
            lambda files: files.onnx_int8,
            ("onnx", "onnxruntime"),
        ),
        Way("OpenVINO", "float32", f"{intel} f32", _openvino(intel_file, "f32"), intel_file, ("openvino",)),
        Way("OpenVINO", "bfloat16", f"{intel} bf16", _openvino(intel_file, "bf16"), intel_file, ("openvino",)),
        Way(
            "OpenVINO",
            "int8",
            f"{intel} {rest} for what is not quantised (its default here); nncf.quantize, ModelType.TRANSFORMER, "
            "64 calibration texts",
            _openvino(lambda files: files.openvino_int8, rest),
            lambda files: files.openvino_int8,
            ("openvino", "nncf"),
        ),
        Way(
            "torchao compiled",
            "int8",
            f"Int8DynamicActivationInt8WeightConfig(version=2); {compiled}",
            _torchao,
            stock,
            ("torchao",),
        ),
        *(
            Way(OURS, x, "nothing pruned, nobody leaves; padding is taken out", _ours(x), _prepare_ours(x))
            for x in PRECISIONS
        ),
    ]
    return {way.name: way for way in found}


def load(way: Way, files: ModelFiles, threads: int) -> Loaded:
    """A way that is ready, with freed memory kept in this process as our own models do it."""
    keep_freed_memory()
    return way.load(files, threads)
