"""The same network with less arithmetic: batch norms folded, and nothing computed four times over.

For evaluation only, and exact but for the rounding of float32; `tests/engines/test_folding.py`
holds the outputs to those of `CPnet`. Three rewritings, each with its reason:

**Norms into convolutions.** 24 of the 41 norms follow a convolution whose output nothing else
reads (`conv_1` and `conv_3` of each block), or stand before a 1x1 convolution without padding (the
projections). The others follow a residual sum that is read twice, or stand before a ReLU. In an
up-block the skip connection and the style are added between convolution and norm: they get the
norm's factor instead, and the style's layer its offset too. Where a residual sum and the style are
added and normalised (`conv_2` of an up-block), addition and norm become one step.

**What a nearest-neighbour enlargement repeats is computed before it.** Projections, norms and ReLU
see one pixel at a time, so they commute with it: a quarter of the work.

**3x3 convolutions of enlarged images at the small scale.** Of the nine pixels under the kernel at
most four differ. For a row of the output, rows (i - 1, i, i) or (i, i, i + 1) of the small image
are read, so that two rows of weights add up; likewise columns. The four cases (odd or even row and
column) are four sets of 2x2 weights over the same windows: one 2x2 convolution with four times the
outputs, then interleaved. 4/9 of the multiplications, a tenth of the whole network's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

from densebatch.models.network import Conv, Projection

if TYPE_CHECKING:
    from densebatch.models.network import CPnet, ResidualDown, ResidualUp, StyledConv


def fold_network(network: CPnet) -> FoldedCPnet:
    """The network rewritten for evaluation.

    Parameters
    ----------
    network
        In evaluation mode, float32. It is not changed, and shares no weights with the result.

    Returns
    -------
    FoldedCPnet
        Maps `(n, 2, h, w)` to `(n, 3, h, w)` as the network does.

    Raises
    ------
    ValueError
        If the network is in training mode: its norms then depend on the batch.
    """
    if network.training:
        raise ValueError("a network in training mode cannot be folded")
    with torch.no_grad():
        return FoldedCPnet(network).eval().requires_grad_(requires_grad=False)


class FoldedCPnet(nn.Module):
    """A `CPnet` rewritten; made by `fold_network`."""

    def __init__(self, network: CPnet) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            _Down(cast("ResidualDown", block)) for block in network.downsample.down
        )
        deepest = len(self.down) - 1
        self.up = nn.ModuleList(
            _Up(cast("ResidualUp", block), enlarges=level < deepest)
            for level, block in enumerate(network.upsample.up)
        )
        self.norm = _copy_norm(network.output[0])
        self.output = _copy_conv(network.output[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return flows at five times unit length and cell-probability logits, `(n, 3, h, w)`."""
        features: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            features.append(block(x if level == 0 else functional.max_pool2d(features[-1], 2)))
        style = features[-1].mean(dim=(2, 3), dtype=torch.float32)
        style = style / style.square().sum(dim=1, keepdim=True).sqrt()
        style = style.to(x.dtype)
        x = features[-1]
        for level in range(len(features) - 1, -1, -1):
            x = self.up[level](x, features[level], style)
        result: torch.Tensor = self.output(torch.relu_(self.norm(x)))
        return result


class _Down(nn.Module):
    def __init__(self, block: ResidualDown) -> None:
        super().__init__()
        first, second, third, fourth = (cast("nn.Sequential", conv) for conv in block.conv)
        self.proj = _fold_before(*block.proj)
        self.norm_0 = _copy_norm(first[0])
        self.conv_0 = _fold_after(first[2], second[0])
        self.conv_1 = _copy_conv(second[2])
        self.norm_2 = _copy_norm(third[0])
        self.conv_2 = _fold_after(third[2], fourth[0])
        self.conv_3 = _copy_conv(fourth[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = torch.relu_(self.conv_0(torch.relu_(self.norm_0(x))))
        x = self.proj(x) + self.conv_1(inner)
        inner = torch.relu_(self.conv_2(torch.relu_(self.norm_2(x))))
        result: torch.Tensor = x + self.conv_3(inner)
        return result


class _Up(nn.Module):
    """Takes the small image, and returns it at twice the size if it `enlarges`."""

    skip_scale: torch.Tensor
    scale_2: torch.Tensor

    def __init__(self, block: ResidualUp, *, enlarges: bool) -> None:
        super().__init__()
        self.enlarges = enlarges
        first = cast("nn.Sequential", block.conv[0])
        second, third, fourth = (cast("StyledConv", conv) for conv in list(block.conv)[1:])
        self.proj = _fold_before(*block.proj)
        self.norm_0 = _copy_norm(first[0])
        conv = _fold_after(first[2], second.conv[0], offset=False)
        self.conv_0 = EnlargingConv(conv) if enlarges else conv
        self.register_buffer("skip_scale", _scale_of(second.conv[0]))
        self.style_1 = _fold_style(second.full, second.conv[0])
        self.conv_1 = _copy_conv(second.conv[2])
        self.register_buffer("scale_2", _scale_of(third.conv[0]))
        self.style_2 = _fold_style(third.full, third.conv[0])
        self.conv_2 = _fold_after(third.conv[2], fourth.conv[0], offset=False)
        self.style_3 = _fold_style(fourth.full, fourth.conv[0])
        self.conv_3 = _copy_conv(fourth.conv[2])

    def forward(self, x: torch.Tensor, skip: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        # Nothing works in place on x, because it may be the features of a level, needed as skip.
        main = self.proj(x)
        if self.enlarges:
            main = functional.interpolate(main, scale_factor=2.0, mode="nearest")
        inner = self.conv_0(torch.relu_(self.norm_0(x)))
        inner = torch.addcmul(inner, skip, self.skip_scale.to(x.dtype))
        inner = inner + self.style_1(style)[:, :, None, None]
        x = main + self.conv_1(torch.relu_(inner))
        inner = torch.addcmul(self.style_2(style)[:, :, None, None], x, self.scale_2.to(x.dtype))
        inner = self.conv_2(torch.relu_(inner)) + self.style_3(style)[:, :, None, None]
        result: torch.Tensor = x + self.conv_3(torch.relu_(inner))
        return result


class EnlargingConv(nn.Module):
    """A 3x3 convolution of the nearest-neighbour enlargement by 2, at the small scale.

    Position (i, j) of the 2x2 convolution sees rows i - 1 and i of the small image, from which
    rows 2 i - 1 and 2 i of the large one follow.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.double()
        cases = [
            [_add_up(_add_up(weight, 2, even_y), 3, even_x) for even_x in (False, True)]
            for even_y in (False, True)
        ]
        # outputs in the order of `pixel_shuffle`: channel, row, column
        stacked = torch.stack([torch.stack(row, dim=1) for row in cases], dim=1)
        self.conv = _make_conv(
            stacked.flatten(0, 2), _bias_of(conv).double().repeat_interleave(4), padding=1
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve `(n, c, h, w)` as if it were enlarged to `(n, c, 2 h, 2 w)`."""
        return functional.pixel_shuffle(self.conv(x), 2)[:, :, 1:-1, 1:-1]


def _add_up(weight: torch.Tensor, axis: int, even: bool) -> torch.Tensor:
    """Three weights along an axis as two, for the small rows that an output row reads.

    An even row reads rows (i - 1, i, i), and its window is (i - 1, i); an odd one reads
    (i, i, i + 1), and its window is (i, i + 1).
    """
    a, b, c = weight.unbind(axis)
    return torch.stack([a, b + c] if even else [a + b, c], dim=axis)


def _scale_and_offset(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What a norm does in evaluation, `scale * x + offset` per channel, in float64."""
    norm = cast("nn.BatchNorm2d", norm)
    variance, mean = cast("torch.Tensor", norm.running_var), cast("torch.Tensor", norm.running_mean)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def _scale_of(norm: nn.Module) -> torch.Tensor:
    return _scale_and_offset(norm)[0].float()[:, None, None]


def _make_conv(weight: torch.Tensor, bias: torch.Tensor, padding: int) -> nn.Conv2d:
    n_out, n_in, height, width = weight.shape
    # On the meta device no random weights are drawn, which would move the caller's generator on.
    conv = Conv(n_in, n_out, (height, width), padding=padding, device="meta")
    conv.weight, conv.bias = _copy_parameter(weight), _copy_parameter(bias)
    return conv


def _copy_parameter(values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().to(torch.float32, copy=True))


def _bias_of(conv: nn.Conv2d) -> torch.Tensor:
    return cast("torch.Tensor", conv.bias)


def _copy_conv(module: nn.Module) -> nn.Conv2d:
    conv = cast("nn.Conv2d", module)
    return _make_conv(conv.weight, _bias_of(conv), conv.kernel_size[0] // 2)


def _copy_norm(module: nn.Module) -> nn.BatchNorm2d:
    norm = cast("nn.BatchNorm2d", module)
    copy = nn.BatchNorm2d(norm.num_features, eps=norm.eps)
    copy.load_state_dict(norm.state_dict())
    return copy


def _fold_after(module: nn.Module, norm: nn.Module, *, offset: bool = True) -> nn.Conv2d:
    """A convolution followed by a norm; the norm's offset may be left to the style's layer."""
    conv = cast("nn.Conv2d", module)
    scale, shift = _scale_and_offset(norm)
    bias = _bias_of(conv).double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    return _make_conv(weight, bias + shift if offset else bias, conv.kernel_size[0] // 2)


def _fold_before(norm: nn.Module, module: nn.Module) -> nn.Conv2d:
    """A norm followed by a 1x1 convolution."""
    conv = cast("nn.Conv2d", module)
    scale, shift = _scale_and_offset(norm)
    weight = conv.weight.double()
    bias = _bias_of(conv).double() + weight[:, :, 0, 0] @ shift
    return _make_conv(weight * scale[None, :, None, None], bias, padding=0)


def _fold_style(layer: nn.Module, norm: nn.Module) -> nn.Linear:
    """The layer that projects the style, followed by a norm."""
    linear = cast("nn.Linear", layer)
    scale, shift = _scale_and_offset(norm)
    folded = Projection(linear.in_features, linear.out_features, device="meta")
    folded.weight = _copy_parameter(linear.weight.double() * scale[:, None])
    folded.bias = _copy_parameter(linear.bias.double() * scale + shift)
    return folded
