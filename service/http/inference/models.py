"""The objects of the Open Inference Protocol: requests are checked against these models, answers are made of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from training.documents import Frozen

# A request with one of these is refused, because they change the meaning of its answer. Other parameters are ignored.
REFUSED_PARAMETERS = ("classification", "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
_SHAPE = {
    "type": "array",
    "prefixItems": [{"type": "integer", "minimum": 1}, {"const": 3}, *[{"type": "integer", "minimum": 1}] * 2],
    "items": False,
    "minItems": 4,
}
_DATA = {"type": ["array", "null"]}
_SIZE = {"type": ["integer", "null"], "minimum": 1}

Datatype = Literal["FP32"]


# Shape, size and numbers (their schemas are above) are checked by `tensors`, which knows the network's input.
class Asked(BaseModel):
    """A part of a request: nothing is converted, and unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class Parameters(Asked):
    """Parameters of a request or a tensor; those of extensions that are not known here are passed over."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, value: object) -> object:
        found = [name for name in REFUSED_PARAMETERS if isinstance(value, dict) and name in value]
        if found:
            raise ValueError(f"{found[0]}: not supported here")
        return value


class InputParameters(Parameters):
    """Parameters of the images."""

    binary_data_size: Annotated[Any, WithJsonSchema(_SIZE)] = Field(
        default=None, description="bytes of this tensor after the JSON object"
    )


class OutputParameters(Parameters):
    """Parameters of the logits."""

    binary_data: bool | None = Field(default=None, description="whether they are wanted as bytes")


class RequestParameters(Parameters):
    """Parameters of a request."""

    binary_data_output: bool | None = Field(default=None, description="whether the answer is wanted as bytes")


class InputTensor(Asked):
    """The images: numbers in JSON, or bytes after it."""

    name: Literal["images"]
    datatype: Datatype
    shape: Annotated[Any, WithJsonSchema(_SHAPE)] = Field(
        description="B, 3, H, W: how many images, and the size that the model says"
    )
    data: Annotated[Any, WithJsonSchema(_DATA)] = Field(
        default=None, description="B * 3 * H * W numbers within [0, 1], flat or nested"
    )
    parameters: InputParameters | None = None


class WantedOutput(Asked):
    """How the logits are wanted."""

    name: Literal["logits"]
    parameters: OutputParameters | None = None


class InferenceRequest(Asked):
    """A request for the logits of images."""

    id: str | None = Field(default=None, description="comes back with the answer")
    parameters: RequestParameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[WantedOutput], Field(max_length=1)] | None = None

    @field_validator("id", mode="after")
    @classmethod
    def _check_id(cls, value: str | None) -> str | None:
        if value is not None and not value.isascii() and value.encode(errors="replace").decode() != value:
            raise ValueError("expected whole letters of Unicode")  # half of one cannot be sent back
        return value

    @property
    def is_answer_binary(self) -> bool:
        """The answer is wanted as bytes: by a parameter of the output, or else of the request."""
        own = self.outputs[0].parameters if self.outputs else None
        if own is not None and own.binary_data is not None:
            return own.binary_data
        return self.parameters is not None and bool(self.parameters.binary_data_output)


class BinarySize(Frozen):
    """How long a tensor after the JSON object is."""

    binary_data_size: int


class OutputTensor(Frozen):
    """The logits: numbers in JSON, or bytes after it."""

    name: Literal["logits"] = "logits"
    datatype: Datatype = "FP32"
    shape: list[int] = Field(description="B, K")
    data: list[float] | None = None
    parameters: BinarySize | None = None


class InferenceResponse(Frozen):
    """The logits of a request's images."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class TensorMetadata(Frozen):
    """A tensor that a model takes or gives."""

    name: str
    datatype: Datatype = "FP32"
    shape: list[int] = Field(description="-1 for the number of images")


class ModelParameters(Frozen):
    """More about a model."""

    version: str = Field(description="the one that this describes")
    temperature: float = Field(description="softmax(logits / temperature) are the confidences that `/predict` gives")
    class_names: list[str]
    base_set: str
    coefficients: dict[str, float]


class ModelMetadata(Frozen):
    """A deployment as a model, with the versions that can be asked."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ModelParameters


class ServerMetadata(Frozen):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class ProtocolError(Frozen):
    """An error below `/v2`."""

    error: str


MODELS: tuple[type[BaseModel], ...] = (
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    ServerMetadata,
    ProtocolError,
)
