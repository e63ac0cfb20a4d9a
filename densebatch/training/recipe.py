"""Recipe of a training run: frozen, strict, one docstring and unit each; YAML in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from densebatch.base.settings import (
    Amount,
    Count,
    Names,
    Positive,
    PositiveCount,
    read_settings,
    refuse_bool,
)

if TYPE_CHECKING:
    from pathlib import Path

_Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(refuse_bool)]


class Recipe(BaseModel):
    """Everything that decides the weights, besides images and start.

    Lossless augmentation (flips, quarter turns) moves pixels; lossy augmentation (rotation,
    scaling) interpolates them, and Han et al. 2024 found rotation harmful on dense tissue.
    """

    # channels may be numbers in YAML
    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )

    widths: tuple[PositiveCount, ...] = Field(
        default=(2, 16, 32, 64, 128),
        min_length=3,
        max_length=6,
        description="channels of the input and of each resolution; Cellpose's own are "
        "2, 32, 64, 128, 256",
    )
    steps: PositiveCount = Field(default=1100, description="optimiser steps")
    batch: PositiveCount = Field(default=8, description="crops per step")
    patch_px: PositiveCount = Field(default=224, description="side of a crop, multiple of 8")
    optimiser: Literal["adamw", "muon", "sgd"] = Field(
        default="adamw",
        description="muon: for inner convolutions, with adamw for the rest; sgd: momentum 0.9",
    )
    learning_rate: Positive = Field(default=2e-3, description="peak")
    weight_decay: Amount = Field(default=1e-2, description="of the optimiser")
    warmup_steps: Count = Field(
        default=100,
        description="linear warm-up; cosine decay follows, over the steps on images",
    )
    final_rate: Amount = Field(
        default=0.0,
        le=1,
        description="of the peak, what the decay ends at; 1 keeps the peak and leaves it to the "
        "average to calm the weights",
    )
    simulated_steps: Count = Field(
        default=0,
        description="of the steps, how many come first on simulated tissue, at the peak rate",
    )
    average: _Share = Field(
        default=0.99,
        description="decay per step of the averaged weights; without mean_steps the result",
    )
    mean_steps: Count = Field(
        default=0,
        description="the result is the mean of the weights after each of so many last steps, at "
        "a kept rate; 0 for the averaged weights",
    )
    clip_norm: Positive = Field(default=1.0, description="gradients are scaled to this norm")

    flips: bool = Field(default=True, description="mirror crops (lossless)")
    quarter_turns: bool = Field(default=True, description="turn crops by 90 degrees (lossless)")
    rotation: bool = Field(default=False, description="turn crops by any angle (interpolates)")
    scaling: Amount = Field(
        default=0.0, description="half-width of random scaling, log2 (interpolates)"
    )
    pasting: Amount = Field(
        default=0.0,
        le=1,
        description="share of crops into which a disc of another crop is pasted, whole cells only",
    )
    collation: bool = Field(
        default=False,
        description="erase cells at an image's edges and put it together with itself, 2 x 2",
    )
    gamma: Amount = Field(default=0.25, description="half-width of gamma, log2")
    brightness: Amount = Field(default=0.25, description="half-width of the gain, log2")
    offset: Amount = Field(
        default=0.03, description="half-width of an added constant, of the range 0..1"
    )
    noise: Amount = Field(
        default=0.02, description="largest standard deviation of added noise, of the range 0..1"
    )
    shading: Amount = Field(
        default=0.0, description="standard deviation of a smooth uneven gain, log2"
    )
    border_weight: Amount = Field(
        default=0.0, description="extra weight in the loss of pixels at cell borders"
    )
    size_weight: Amount = Field(
        default=0.0,
        description="exponent by which small cells weigh more in the loss: a pixel's weight is "
        "(mean area / area of its cell)^x, but no less than 0.5 and no more than 3",
    )
    consistency: Amount = Field(
        default=0.0,
        description="weight in the loss of the difference to what the averaged network, or the "
        "--teachers in turn, say of the same crop, moved by a few pixels, mirrored and turned as "
        "flips and quarter_turns allow; reached in four times the warm-up after it",
    )

    membrane: Names = Field(
        default=(),
        description="channels of multi-channel images, by name or index (#2: always the index), "
        "one or a list; combined by maximum",
    )
    nuclei: str | None = Field(default=None, description="nuclear channel, fed as second input")
    scene: str | None = Field(
        default=None, description="image of files that hold several, by name or index"
    )
    axes: str | None = Field(
        default=None, description="a letter per dimension of the images, if not the metadata's"
    )
    z: str | None = Field(
        default=None,
        description="focal plane of several, by index, or max: the largest value of all",
    )
    t: str | None = Field(default=None, description="point in time of several, by index")
    label_components: bool | None = Field(
        default=None,
        description="yes/no masks given for labels: true makes cells of their pieces, false takes "
        "each label for one cell; default: refused",
    )
    mask_debris: bool = Field(
        default=True,
        description="leave specks far brighter than the tissue, and dead pixels, out of the "
        "percentiles and show 0 there",
    )
    percentiles: tuple[float, float] = Field(
        default=(1.0, 99.0), description="of an image that become 0 and 1"
    )
    um_per_px: Positive | None = Field(
        default=0.5, description="resolution of the images; unless stated, what they tell, else 0.5"
    )
    diameter_px: Positive | None = Field(
        default=None, description="rescale every image to this mean cell diameter; default: native"
    )
    scales: PositiveCount = Field(
        default=1,
        description="copies of each image, evenly over scale_spread around diameter_px: made once, "
        "from the image as it is, where scaling interpolates every crop",
    )
    scale_spread: Amount = Field(
        default=0.0, description="half-width of the scales of an image's copies, log2"
    )
    area_exponent: Amount = Field(
        default=1.0,
        le=1,
        description="an image is drawn as often as its area to this power: 1 draws evenly over "
        "area, 0 each image as often",
    )
    train_images: Count | tuple[str, ...] = Field(
        default=0, description="names of images, or how many (the seed chooses); 0 takes all"
    )
    validation_columns: _Share = Field(
        default=0.0, description="share of columns at the right of each image held out"
    )
    validation_share: _Share = Field(
        default=0.0,
        description="share of images held out, by name: those whose name's SHA-256 begins with 32 "
        "bits that as a fraction are below it",
    )
    autocast: bool = Field(
        default=True, description="bfloat16 activations and Muon rounds; weights stay float32"
    )
    seed: Count = Field(default=0, description="of weights, crops and jitter")
    about: dict[str, str] = Field(default_factory=dict, description="goes into the card as it is")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        unit = 2 ** (len(self.widths) - 2)
        if self.patch_px % unit:
            raise ValueError(f"patch_px is a multiple of {unit}")
        if self.widths[0] != 2:
            raise ValueError("widths begin with 2: membrane and nuclei")
        if self.simulated_steps >= self.steps:
            raise ValueError(
                f"simulated_steps, {self.simulated_steps}, must be fewer than steps, {self.steps}"
            )
        if self.mean_steps > self.steps - self.simulated_steps:
            raise ValueError(
                f"mean_steps, {self.mean_steps}, must be no more than the steps after "
                f"simulated_steps, {self.steps - self.simulated_steps}"
            )
        if (self.scales > 1 or self.scale_spread) and self.diameter_px is None:
            raise ValueError("scales and scale_spread are around a diameter_px, which is not set")
        if bool(self.scale_spread) != (self.scales > 1):
            raise ValueError("scale_spread is for 2 scales and more, which need one")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles rise from 0 to 100")
        return self

    @property
    def stretches(self) -> tuple[float, ...]:
        """Scales of an image's copies, of `diameter_px`."""
        spread = np.linspace(-self.scale_spread, self.scale_spread, self.scales)
        return tuple(2.0 ** float(x) for x in spread) if self.scales > 1 else (1.0,)


def load_recipe(path: Path | None, **overrides: object) -> Recipe:
    """Recipe from YAML, with what was given on the command line on top.

    Raises
    ------
    InputError
        For an unreadable file, an unknown key or a value out of range: one sentence.
    """
    return read_settings(Recipe, path, overrides)
