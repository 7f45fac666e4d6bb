"""`[training]` of a plan: how a head is fitted."""

from typing import Annotated, Literal

from pydantic import Field

from perception.profile import Section
from perception.training.imbalance import Imbalance


class TrainingConfig(Section):
    """`[training]`: how a head is fitted."""

    epochs: Annotated[int, Field(ge=1)] = 200
    batch: Annotated[int, Field(ge=2, description="examples per step")] = 256
    optimiser: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd and rmsprop")] = 0.9
    schedule: Literal["constant", "cosine", "one-cycle", "plateau"] = "constant"
    clip: Annotated[float, Field(gt=0, description="largest norm of a step's gradient")] = 5.0
    patience: Annotated[int, Field(ge=1, description="epochs without a better validation loss")] = 15
    select: Annotated[
        Literal["nll", "balanced-nll", "last"],
        Field(
            description="which epoch is kept: the best on validation, with the class weights of the "
            "remedy of imbalance; the best with equal class weights; or the last"
        ),
    ] = "nll"
    input_dropout: Annotated[
        float, Field(ge=0, le=1, description="share of rows that lose one or more whole inputs")
    ] = 0.35
    late: Annotated[
        float, Field(ge=0, le=1, description="share of rows in which one input is some ticks late")
    ] = 0.0
    late_ticks: Annotated[int, Field(ge=1, description="largest number of ticks")] = 3
    encoder_rate: Annotated[
        float, Field(gt=0, description="learning rate of trained encoders, times that of the head")
    ] = 1.0
    auxiliary: Annotated[float, Field(ge=0, description="weight of the head's auxiliary loss")] = 1.0
    imbalance: Imbalance = Imbalance()
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Field(description="of matrix products; float16 scales the loss, because small gradients would be 0"),
    ] = "float32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    seed: int = 0
