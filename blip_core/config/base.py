"""What the settings of all parts share: the frozen class, types with bounds, words that recur."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Source = Literal["web", "human", "synthetic", "fused"]
OFF = BeforeValidator(lambda v: "off" if v is False else v)  # YAML 1.1 reads off as false, and DVC writes it without quotes


def _asks_of_the_text(question: str) -> str:
    if question.count("{text}") != 1:
        raise ValueError(f"expected a question that has {{text}} in it once, got {question!r}")
    return question


Question = Annotated[str, AfterValidator(_asks_of_the_text)]
Engine = Literal["local", "ray"]
Precision = Literal["auto", "fp32", "bf16"]  # blip_core/compute/precision.py
ENDPOINT = "openai:"  # before URL#MODEL: a model that a server has
MODELS = "the folder of a BLIP, ours or of transformers, a .pth file of the authors, or models:/NAME/VERSION of the registry"

# of every stage that computes with tensors. The demo has 1: a file that several machines share must not mean another sum on each
THREADS = (
    "CPU threads; 0 takes every core that the process may use (blip_core/runtime/cores.py). Their number changes sums in their last bits, "
    "so bit-equal reruns need an equal one, and 0 may mean another on another machine"
)
SLICES = "columns by whose values it is told as well (docs/slices.md)"
ENGINE = "local: one shard after the other, here; ray: over the machines of a Ray cluster (docs/scale.md), to the same bytes"


class Config(BaseModel):
    """Frozen settings that refuse unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")
