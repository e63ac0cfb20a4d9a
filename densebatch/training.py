"""Train a CPnet on annotated tissue with the tuned recipe; resumable to the step.

The recipe is that of `configs/train/dense.yaml`: native resolution, flips and quarter turns only
(arbitrary rotation and scaling interpolate, and Han et al. 2024 found rotation harmful on dense
tissue), AdamW with warm-up and cosine decay, averaged weights.

Every random choice of a step comes from a generator seeded with (seed, step), so a run that
resumes from a checkpoint continues as if it had not stopped.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from skimage.io import imread
from torch.nn import functional

from densebatch.diffusion import compute_flows
from densebatch.models import load_network
from densebatch.network import HALF_WIDTH, CPnet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from densebatch.models import ModelSpec

_FLOW_SCALE = 5.0  # Cellpose's networks give flows at five times unit length


@dataclass(frozen=True)
class TrainSettings:
    """Recipe of a training run.

    Attributes
    ----------
    widths : channels of the input and of each resolution
    steps : optimiser steps
    batch : crops per step
    patch_px : side of a crop, a multiple of 8
    learning_rate, weight_decay : AdamW
    warmup_steps : steps of linear warm-up; cosine decay to zero follows
    average : decay per step of the averaged weights, which are what is saved
    clip_norm : gradients are scaled down to this norm
    gamma, brightness, offset, noise : half-widths of the intensity jitter (log2, log2, absolute
        and standard deviation, on images normalised to 0..1)
    nuclei : share of crops that get a simulated nuclear channel; without any, a network must not
        be given one
    percentiles : lower and upper percentile of an image that become 0 and 1
    um_per_px : resolution of the training images
    autocast : bfloat16 activations (weights and averages stay float32)
    seed : of weights, crops and jitter
    """

    widths: tuple[int, ...] = HALF_WIDTH
    steps: int = 3600
    batch: int = 6
    patch_px: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    average: float = 0.99
    clip_norm: float = 1.0
    gamma: float = 0.5
    brightness: float = 0.4
    offset: float = 0.05
    noise: float = 0.03
    nuclei: float = 0.25
    percentiles: tuple[float, float] = (1.0, 99.0)
    um_per_px: float = 0.5
    autocast: bool = True
    seed: int = 0


@dataclass(frozen=True)
class TrainImage:
    """One annotated image: normalised pixels, labels and target flows."""

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.int32]
    flows: NDArray[np.float32]
    sha256: str


def load_training_images(
    folder: Path, settings: TrainSettings, exclude: Sequence[str] = ()
) -> list[TrainImage]:
    """Read `*_img.png` with `*_masks.png` from a folder.

    Parameters
    ----------
    folder
        Where the pairs lie.
    settings
        For the percentiles.
    exclude
        Names (without `_img.png`) to leave out, such as the validation image.

    Returns
    -------
    list of TrainImage
        Sorted by name.

    Raises
    ------
    ValueError
        If there is no pair, an image has no masks, or shapes differ.
    """
    images = []
    for path in sorted(folder.glob("*_img.png")):
        name = path.name.removesuffix("_img.png")
        if name in exclude:
            continue
        masks_path = path.with_name(f"{name}_masks.png")
        if not masks_path.exists():
            raise ValueError(f"{path}: no masks beside it; expected {masks_path.name}")
        pixels = imread(path)
        if pixels.ndim == 3:
            # Marker images saved as RGB carry the marker in one plane, or in all alike.
            pixels = pixels[..., :3].max(axis=-1)
        labels = imread(masks_path)
        if labels.shape != pixels.shape:
            raise ValueError(f"{path}: image is {pixels.shape}, its masks are {labels.shape}")
        low, high = np.percentile(pixels, settings.percentiles)
        image = ((pixels - low) / max(high - low, 1e-6)).astype(np.float32)
        digest = hashlib.sha256(path.read_bytes() + masks_path.read_bytes()).hexdigest()
        flows = compute_flows(labels)
        images.append(TrainImage(name, image, labels.astype(np.int32), flows, digest))
    if not images:
        raise ValueError(f"{folder}: no training pair; expected *_img.png with *_masks.png")
    return images


def _turn(
    array: NDArray[np.float32], flows: NDArray[np.float32], turn: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One of the eight lossless orientations of `(c, h, w)` planes and of `(2, h, w)` flows."""
    dy, dx = flows
    if turn & 1:
        array, dy, dx = array[:, ::-1], -dy[::-1], dx[::-1]
    if turn & 2:
        array, dy, dx = array[:, :, ::-1], dy[:, ::-1], -dx[:, ::-1]
    if turn & 4:
        array, dy, dx = array.transpose(0, 2, 1), dx.T, dy.T
    return array, np.stack([dy, dx])


def _simulate_nuclei(labels: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.float32]:
    """A nuclear stain that fits most cells: some missing, some of no annotated cell.

    Annotated tissue holds many more nuclei than annotated cells; a network that trusted the stain
    blindly would be wrong on real slides.
    """
    border = (ndimage.grey_erosion(labels, size=3) != labels) | (labels == 0)
    depth = ndimage.distance_transform_edt(~border)
    stained = rng.random(int(labels.max()) + 1) < rng.uniform(0.6, 1.0)
    stained[0] = False
    nuclei = ((depth >= rng.uniform(1.5, 3.5)) & stained[labels]).astype(np.float32)
    gap = ndimage.distance_transform_edt(labels == 0)
    stray = np.zeros_like(nuclei)
    ys, xs = np.nonzero(gap > 4)
    if ys.size:
        chosen = rng.integers(0, ys.size, size=int(rng.integers(0, max(2, ys.size // 400))))
        stray[ys[chosen], xs[chosen]] = 1
        stray = (ndimage.distance_transform_edt(stray == 0) < rng.uniform(3, 5)).astype(np.float32)
    gains = rng.uniform(0.5, 1.3, size=int(labels.max()) + 1).astype(np.float32)
    stain = np.maximum(nuclei * gains[labels], stray * rng.uniform(0.5, 1.2))
    stain = ndimage.gaussian_filter(stain, rng.uniform(0.7, 1.6))
    stain += rng.normal(0, rng.uniform(0.01, 0.06), stain.shape)
    result: NDArray[np.float32] = stain.astype(np.float32)
    return result


def sample_batch(
    images: Sequence[TrainImage], settings: TrainSettings, step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The crops of one step.

    Returns
    -------
    inputs : `(batch, 2, patch, patch)` float32
    targets : `(batch, 3, patch, patch)` float32: 5 dy, 5 dx, inside a cell (0 or 1)
    """
    rng = np.random.default_rng([settings.seed, step])
    side = settings.patch_px
    areas = np.array([image.image.size for image in images], float)
    inputs = np.zeros((settings.batch, 2, side, side), np.float32)
    targets = np.zeros((settings.batch, 3, side, side), np.float32)
    for index in range(settings.batch):
        image = images[rng.choice(len(images), p=areas / areas.sum())]
        height, width = image.image.shape
        if min(height, width) < side:
            raise ValueError(f"{image.name}: {height}x{width} px is smaller than a {side} px patch")
        y = int(rng.integers(0, height - side + 1))
        x = int(rng.integers(0, width - side + 1))
        window = np.s_[y : y + side, x : x + side]
        pixels = image.image[window]
        labels = image.labels[window]
        gamma = 2.0 ** rng.uniform(-settings.gamma, settings.gamma)
        gain = 2.0 ** rng.uniform(-settings.brightness, settings.brightness)
        offset = rng.uniform(-settings.offset, settings.offset)
        pixels = np.sign(pixels) * np.abs(pixels) ** gamma * gain + offset
        if rng.random() < 0.5:
            sigma = settings.noise * rng.random()
            pixels = pixels + rng.normal(0, sigma, pixels.shape)
        planes = np.zeros((3, side, side), np.float32)
        planes[0] = pixels
        planes[2] = labels > 0
        if rng.random() < settings.nuclei:
            planes[1] = _simulate_nuclei(labels, rng)
        planes, flows = _turn(planes, image.flows[:, *window], int(rng.integers(8)))
        inputs[index] = planes[:2]
        targets[index, :2] = _FLOW_SCALE * flows
        targets[index, 2] = planes[2]
    return inputs, targets


def compute_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cellpose's loss: half the mean squared error of 5x flows plus binary cross-entropy."""
    flow = functional.mse_loss(output[:, :2], target[:, :2])
    probability = functional.binary_cross_entropy_with_logits(output[:, 2], target[:, 2])
    return flow / 2.0 + probability


def _learning_rate(step: int, settings: TrainSettings) -> float:
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def _update_average(average: CPnet, network: CPnet, decay: float) -> None:
    source = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(source[name], 1.0 - decay)
        else:
            tensor.copy_(source[name])


def _mean_diameter(images: Sequence[TrainImage]) -> float:
    """Mean diameter of the training cells in pixels, `2 sqrt(area / pi)`."""
    areas = np.concatenate(
        [np.unique(i.labels[i.labels > 0], return_counts=True)[1] for i in images]
    )
    return float(np.mean(2.0 * np.sqrt(areas / np.pi)))


def train(
    images: Sequence[TrainImage],
    settings: TrainSettings,
    checkpoint: Path,
    *,
    start: ModelSpec | None = None,
    checkpoint_seconds: float = 120.0,
    on_step: Callable[[int, float], None] | None = None,
) -> CPnet:
    """Train a CPnet, or go on from a checkpoint of the same recipe.

    Parameters
    ----------
    images
        Annotated images.
    settings
        The recipe.
    checkpoint
        Where weights, averages and optimiser state are kept; removed by nobody. The loss curve is
        written beside it as CSV.
    start
        Model whose weights are trained further; random weights without.
    checkpoint_seconds
        Seconds between checkpoints.
    on_step
        Called with the number of finished steps and the loss.

    Returns
    -------
    CPnet
        The averaged network, in evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If the checkpoint is of another recipe or other images.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)
    diameter = _mean_diameter(images)
    network = CPnet(settings.widths, diam_mean=diameter)
    if start is not None:
        if start.widths != tuple(settings.widths):
            raise ValueError(
                f"model {start.name} has widths {start.widths}, the recipe {tuple(settings.widths)}"
            )
        network = load_network(start)
    network = network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
    )
    identity: dict[str, Any] = {
        "settings": {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()
        },
        "images": {image.name: image.sha256 for image in images},
        "start": start.sha256 if start is not None else None,
    }
    step = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(
                f"{checkpoint}: belongs to another recipe or other images; "
                "choose another output or remove it"
            )
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    curve_path = checkpoint.with_suffix(".csv")
    losses: list[tuple[int, float]] = []
    if step and curve_path.exists():
        with curve_path.open() as file:
            losses = [(int(s), float(v)) for s, v in list(csv.reader(file))[1:] if int(s) <= step]

    def save() -> None:
        partial = checkpoint.with_suffix(".partial")
        torch.save(
            {
                "identity": identity,
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
            },
            partial,
        )
        partial.replace(checkpoint)
        with curve_path.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *losses])

    saved = time.monotonic()
    network.train()
    while step < settings.steps:
        inputs, targets = sample_batch(images, settings, step)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, settings)
        batch = torch.from_numpy(inputs).to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast):
            output = network(batch)
        loss = compute_loss(output.float(), torch.from_numpy(targets).to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimiser.step()
        # Early on the average follows more closely, or it would remember the random start.
        _update_average(average, network, min(settings.average, (step + 1) / (step + 10)))
        step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"loss became {value} at step {step}; lower the learning rate")
        losses.append((step, round(value, 6)))
        if on_step is not None:
            on_step(step, value)
        if time.monotonic() - saved > checkpoint_seconds:
            save()
            saved = time.monotonic()
    save()
    result: CPnet = average.eval().cpu()
    return result
