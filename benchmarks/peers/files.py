"""A model's files in the form that each engine reads, made once from the same weights."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from mp_model.backbones.int8 import to_int8
from mp_model.checkpoints.reading import read_classifier
from mp_model.checkpoints.tuned_for import fingerprint
from mp_model.data.samples import minilm
from mp_model.measuring.timing import padded_twin

from .plan import LABELS, padded, texts_of

OPSET = 17
CALIBRATION_TEXTS = 64
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


class PlainBert(nn.Module):
    """The same modules with attention written out, in the form whose fusion ONNX Runtime's optimizer knows.

    Args:
        stock: transformers' classifier, whose modules it shares.
    """

    def __init__(self, stock: BertForSequenceClassification) -> None:
        super().__init__()
        config = stock.config
        self.stock, self.heads, self.hidden = stock, config.num_attention_heads, config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """Logits ``[batch, labels]`` of a batch ``[batch, width]``."""
        bert = self.stock.bert
        x = bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        batch, width, _ = x.shape
        head_dim = self.hidden // self.heads  # numbers in the graph, not shapes, by which the optimizer knows attention
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in bert.encoder.layer:
            attention = layer.attention.self
            projections = (attention.query, attention.key, attention.value)
            q, k, v = (p(x).view(batch, width, self.heads, head_dim).permute(0, 2, 1, 3) for p in projections)
            scores = torch.matmul(q, k.transpose(-1, -2)) / head_dim**0.5 + bias
            context = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).reshape(batch, width, self.hidden)
            x = layer.attention.output(context, x)
            x = layer.output(layer.intermediate(x), x)
        return self.stock.classifier(bert.pooler(x))


class ModelFiles:
    """The files of one model; each is made when it is first asked for.

    Args:
        folder: place for them.
        make: saves transformers' classifier in a folder.
    """

    def __init__(self, folder: Path, make: Callable[[Path], None]) -> None:
        self.folder, self._make = folder, make

    def _made(self, name: str, build: Callable[[Path], None]) -> Path:
        """A folder that is whole, or not there."""
        folder, part = self.folder / name, self.folder / f"{name}.part"
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            build(part)
            part.rename(folder)
        return folder

    @property
    def weights(self) -> Path:
        """Folder of transformers' classifier, float32."""
        return self._made("weights", self._make)

    def stock(self, dtype: torch.dtype = torch.float32) -> BertForSequenceClassification:
        """transformers' classifier with its scaled-dot-product attention."""
        loaded = BertForSequenceClassification.from_pretrained(self.weights, attn_implementation="sdpa", dtype=dtype)
        return loaded.eval()

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return BertConfig.from_pretrained(self.weights).vocab_size

    @property
    def ours_int8(self) -> Path:
        """Folder of our classifier, kept in int8."""

        def build(folder: Path) -> None:
            model = read_classifier(self.weights).model
            to_int8(model)
            model.save_pretrained(folder)

        return self._made("ours-int8", build)

    @property
    def onnx(self) -> Path:
        """The graph after ONNX Runtime's fusions for BERT, float32.

        Raises:
            RuntimeError: the fusions found fewer attentions than there are layers.
        """

        def build(folder: Path) -> None:
            from onnxruntime.transformers.optimizer import optimize_model

            stock = self.stock()
            sample = padded(texts_of(2, self.vocabulary))
            axes = {name: {0: "batch", 1: "width"} for name in INPUTS} | {"logits": {0: "batch"}}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter that these fusions were written for is an older one
                torch.onnx.export(
                    PlainBert(stock).eval(),
                    tuple(sample[name] for name in INPUTS),
                    folder / "exported.onnx",
                    input_names=list(INPUTS),
                    output_names=["logits"],
                    dynamic_axes=axes,
                    opset_version=OPSET,
                    dynamo=False,
                )
            fused = optimize_model(
                str(folder / "exported.onnx"),
                model_type="bert",
                num_heads=stock.config.num_attention_heads,
                hidden_size=stock.config.hidden_size,
                opt_level=0,
            )
            found = fused.get_fused_operator_statistics()["Attention"]
            if found != stock.config.num_hidden_layers:
                raise RuntimeError(f"{found} of {stock.config.num_hidden_layers} attentions were fused")
            fused.save_model_to_file(str(folder / "model.onnx"))
            (folder / "exported.onnx").unlink()

        return self._made("onnx", build) / "model.onnx"

    @property
    def onnx_int8(self) -> Path:
        """The fused graph in dynamic int8, a scale an output channel."""

        def build(folder: Path) -> None:
            import onnx
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                self.onnx,
                folder / "model.onnx",
                weight_type=QuantType.QInt8,
                per_channel=True,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )

        return self._made("onnx-int8", build) / "model.onnx"

    @property
    def openvino(self) -> Path:
        """OpenVINO's form, float32."""

        def build(folder: Path) -> None:
            import openvino

            converted = openvino.convert_model(self.stock(), example_input=padded(texts_of(2, self.vocabulary)))
            openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing
            return self._made("openvino", build) / "model.xml"

    @property
    def openvino_int8(self) -> Path:
        """OpenVINO's form after NNCF quantised weights and activations, with scales from calibration texts."""

        def build(folder: Path) -> None:
            import nncf
            import openvino

            texts = texts_of(CALIBRATION_TEXTS, self.vocabulary, seed=1)
            calibration = [{name: x.numpy() for name, x in padded([text]).items()} for text in texts]
            quantised = nncf.quantize(
                openvino.Core().read_model(self.openvino),
                nncf.Dataset(calibration),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=CALIBRATION_TEXTS,
            )
            openvino.save_model(quantised, folder / "model.xml", compress_to_fp16=False)

        return self._made("openvino-int8", build) / "model.xml"


def _random_base(dry: bool) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(num_labels=LABELS, **(TINY if dry else {})))


def files_of(model: str, work: Path, dry: bool) -> ModelFiles:
    """The files of one of :data:`MODELS`, under a folder for everybody's."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        if model == "base" or dry:
            built = _random_base(dry)
        else:
            built = BertForSequenceClassification.from_pretrained(minilm(), num_labels=LABELS)
        built.save_pretrained(folder)

    return ModelFiles(work / (f"{model}-dry" if dry else model), make)


def files_of_fitted(folder: Path, work: Path) -> ModelFiles:
    """The files of a fitted folder's backbone and last head, which prune nothing and let nobody leave.

    Raises:
        ValueError: the folder holds int8 weights, of which no other precision can be had.
    """
    pyramid = read_classifier(folder).model
    if pyramid.config.precision == "int8":
        raise ValueError(
            f"{folder} holds int8 weights, which no peer can read; give the float32 folder, tuned for int8"
        )
    return ModelFiles(work / f"fitted-{fingerprint(pyramid)}", padded_twin(pyramid).save_pretrained)
