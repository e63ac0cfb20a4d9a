"""The Cellpose U-Net (CPnet): architecture, and nothing about running it on slides.

The network is the residual U-Net of Cellpose 1 to 3 (Stringer et al. 2021, Nat Methods 18:100).
Parameter names follow Cellpose's so that every lab's fine-tuned checkpoint loads by name;
`tests/models/test_network.py` holds the outputs to those of cellpose 3.1.1.3.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL_WIDTH = (2, 32, 64, 128, 256)
HALF_WIDTH = (2, 16, 32, 64, 128)
QUARTER_WIDTH = (2, 8, 16, 32, 64)

_BN_EPS = 1e-5
_BN_MOMENTUM = 0.05


class Conv(nn.Conv2d):
    """A convolution that draws no random weights where there is no place for them.

    On torch's meta device it would do so by way of sympy, whose import takes a third of a second.
    """

    def reset_parameters(self) -> None:
        """As torch does, but not on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Projection(nn.Linear):
    """A linear layer; as `Conv`."""

    def reset_parameters(self) -> None:
        """As torch does, but not on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()


def _norm_relu_conv(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    """Pre-activation block. The indices 0 (norm) and 2 (conv) are part of checkpoint names."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels, eps=_BN_EPS, momentum=_BN_MOMENTUM),
        nn.ReLU(inplace=True),
        Conv(in_channels, out_channels, size, padding=size // 2),
    )


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels, eps=_BN_EPS, momentum=_BN_MOMENTUM),
        Conv(in_channels, out_channels, 1),
    )


class ResidualDown(nn.Module):
    """Four 3x3 convolutions with two residual sums, at one resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = _projection(in_channels, out_channels)
        self.conv = nn.Sequential()
        for index in range(4):
            width = in_channels if index == 0 else out_channels
            self.conv.add_module(f"conv_{index}", _norm_relu_conv(width, out_channels, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of `out_channels`, of the input's size."""
        # The input is needed twice and the blocks' ReLU works in place on the norm's output only.
        x = self.proj(x) + self.conv[1](self.conv[0](x))
        result: torch.Tensor = x + self.conv[3](self.conv[2](x))
        return result


class StyledConv(nn.Module):
    """A pre-activation convolution whose input is shifted by a projection of the style."""

    def __init__(self, in_channels: int, out_channels: int, style_channels: int) -> None:
        super().__init__()
        self.conv = _norm_relu_conv(in_channels, out_channels, 3)
        self.full = Projection(style_channels, out_channels)

    def forward(self, style: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Features of `out_channels`, of the input's size."""
        return self.conv(x + self.full(style)[:, :, None, None])  # type: ignore[no-any-return]


class ResidualUp(nn.Module):
    """As `ResidualDown`, with the skip connection added and the style in three of four blocks."""

    def __init__(self, in_channels: int, out_channels: int, style_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("conv_0", _norm_relu_conv(in_channels, out_channels, 3))
        for index in (1, 2, 3):
            block = StyledConv(out_channels, out_channels, style_channels)
            self.conv.add_module(f"conv_{index}", block)
        self.proj = _projection(in_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Features of `out_channels`, of the input's and the skip connection's size."""
        x = self.proj(x) + self.conv[1](style, self.conv[0](x) + skip)
        result: torch.Tensor = x + self.conv[3](style, self.conv[2](style, x))
        return result


class _DownPath(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, stride=2)
        self.down = nn.Sequential()
        for level, (inner, outer) in enumerate(itertools.pairwise(widths)):
            self.down.add_module(f"res_down_{level}", ResidualDown(inner, outer))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            features.append(block(x if level == 0 else self.pool(features[-1])))
        return features


class _UpPath(nn.Module):
    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.upsampling = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.Sequential()
        # The deepest block keeps its width; every other halves it.
        entering = [*widths[1:], widths[-1]]
        for level, (outer, inner) in enumerate(zip(widths, entering, strict=True)):
            self.up.add_module(f"res_up_{level}", ResidualUp(inner, outer, widths[-1]))

    def forward(self, style: torch.Tensor, features: list[torch.Tensor]) -> torch.Tensor:
        x = features[-1]
        for level in range(len(features) - 1, -1, -1):
            if level < len(features) - 1:
                x = self.upsampling(x)
            x = self.up[level](x, features[level], style)
        return x


class CPnet(nn.Module):
    """Cellpose's residual U-Net with a global style vector.

    Parameters
    ----------
    widths
        Channels of the input and of each resolution; `(2, 32, 64, 128, 256)` is Cellpose's own.
    n_outputs
        Output channels; 3 for (dy, dx, cell probability).
    diam_mean
        Cell diameter in pixels at the network's scale.

    Notes
    -----
    Input is `(n, 2, h, w)` float32: the normalised cytoplasm or membrane channel and the nuclear
    channel (or zeros); `h` and `w` are multiples of 8. Output is `(n, 3, h, w)`: the flow
    components at five times unit length, and the logit of the cell probability.

    The style is the L2-normalised mean of the deepest features over the *whole* patch, so each
    output pixel depends on all of its patch: patch size is a property of a model.
    """

    def __init__(
        self,
        widths: Sequence[int] = FULL_WIDTH,
        n_outputs: int = 3,
        diam_mean: float = 30.0,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.inputs = self.widths[0]
        self.downsample = _DownPath(self.widths)
        self.upsample = _UpPath(self.widths[1:])
        self.output = _norm_relu_conv(self.widths[1], n_outputs, 1)
        self.diam_mean = nn.Parameter(torch.full((1,), diam_mean), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.full((1,), diam_mean), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return flows at five times unit length and cell-probability logits, `(n, 3, h, w)`."""
        features = self.downsample(x)
        # mean over axes (rather than a pooling layer) is what graph compilers convert
        style = features[-1].mean(dim=(2, 3))
        style = style / style.square().sum(dim=1, keepdim=True).sqrt()
        return self.output(self.upsample(style, features))  # type: ignore[no-any-return]
