"""The bodies of requests and answers: text-embeddings-inference's, vLLM's, and ours on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.batches import Text
from .admission import EmptyError, InvalidError

Threshold = Annotated[float, Field(ge=0, le=1)]
Body = TypeVar("Body", bound=BaseModel)
OneOrPair = Annotated[list[str], Field(json_schema_extra={"minItems": 1, "maxItems": 2})]
Batch = Annotated[list[OneOrPair], Field(json_schema_extra={"minItems": 1})]


class Options(BaseModel):
    """Ours, in any request; fields that nobody knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    exit_threshold: Threshold | list[Threshold] | Literal["never"] | None = Field(
        None, description="Instead of the server's: larger is faster; one for each exit layer, or `never`."
    )
    quality: str | None = Field(None, description="Name of a quality level, see /info; instead of exit_threshold.")
    timeout_ms: Annotated[float, Field(gt=0, le=3.6e6)] | None = Field(
        None, description="Milliseconds after which nobody wants the answer any more."
    )


class PredictRequest(Options):
    """The body of /predict."""

    inputs: str | OneOrPair | Batch = Field(
        description="A text, a pair of texts `[a, b]`, or a batch of both, `[[text], [a, b]]`.",
        examples=["I like you."],
    )
    truncate: bool | None = Field(None, description="Whether longer texts are cut, or refused.")
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = Field(
        None, description="Side at which they are cut."
    )
    raw_scores: bool = Field(False, description="Logits instead of scores.")
    details: bool = Field(False, description="Say how each answer was found, too.")
    parameters: dict[str, Any] | None = Field(
        None, description="From Hugging Face's clients, which want a list for each text: `top_k`, `function_to_apply`."
    )


class ClassifyRequest(Options):
    """The body of /classify, as vLLM has it."""

    model: str | None = None
    input: str | list[str] = Field(description="A text or a list of texts.", examples=["I like you."])
    truncate_prompt_tokens: Literal[-1] | None = Field(None, description="-1: longer texts are cut.")
    use_activation: bool | None = Field(None, description="false: logits instead of probabilities.")
    activation: bool | None = Field(None, description="The same, under its former name.")
    softmax: bool | None = Field(None, description="The same, under an older one.")


class PyramidRequest(BaseModel):
    """The body of /pyramid."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    inputs: str = Field(min_length=1, description="A text.", examples=["I like you."])
    exit_threshold: Threshold | Literal["never"] | None = Field(None, description="Instead of the server's.")


class Prediction(BaseModel):
    """A label and its score."""

    label: str
    score: float


class Details(BaseModel):
    """An answer, and how it was found."""

    predictions: list[Prediction]
    exit_layer: int
    uncertainty: float | None
    tokens: int
    flops: int
    quality: str | None


class ErrorBody(BaseModel):
    """The reason why there is no answer."""

    error: str
    error_type: str


Answered = list[Prediction] | Details
PredictResponse = Answered | list[Answered | ErrorBody]


class Classified(BaseModel):
    """One text's answer, as vLLM has it."""

    index: int
    label: str
    probs: list[float]
    num_classes: int


class ClassifyResponse(BaseModel):
    """The answer of /classify."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Classified]
    usage: dict[str, Any]


class Asked(NamedTuple):
    """Texts as they were asked for; is_batch: whether the answer is a list for each of them."""

    texts: list[Text]
    is_batch: bool


def parsed(kind: type[Body], body: bytes) -> Body:
    """The body of a request.

    Raises:
        InvalidError: it is no JSON, or not of that kind.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = first["loc"][0] if first["loc"] else "the body"
        if where in ("inputs", "input") and first["type"] != "missing":
            shapes = [kind.model_fields[str(where)].description]
            raise InvalidError(f"`{where}` must be {_small(str(shapes[0]))}") from error
        raise InvalidError(f"`{where}`: {first['msg']}") from error


def asked(inputs: str | Sequence[str] | Sequence[Sequence[str]]) -> Asked:
    """The texts of a /predict request.

    Raises:
        EmptyError: no text.
        InvalidError: more than two texts that are no batch.
    """
    if isinstance(inputs, str):
        return Asked([inputs], False)
    if not inputs:
        raise EmptyError("`inputs` cannot be empty")
    if all(isinstance(part, str) for part in inputs):
        return Asked([_text([str(part) for part in inputs])], False)
    return Asked([_text(list(part)) for part in inputs], True)


def _text(parts: Sequence[str]) -> Text:
    if len(parts) == 1:
        return parts[0]
    if len(parts) == 2:
        return parts[0], parts[1]
    raise InvalidError(
        f"a list of {len(parts)} texts is neither one nor a pair; a batch is a list of lists, [[text], [text, text], ...]"
    )


def _small(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")
