"""The network of Cellpose-SAM (Cellpose 4): architecture, and nothing about running it on slides.

It is the image encoder of Segment Anything (Kirillov et al. 2023, arXiv:2304.02643), a vision
transformer with decomposed relative positions (Li et al. 2022, arXiv:2112.01526), with smaller
tokens and attention over the whole patch in every block, and a linear read-out of each token's
pixels (Pachitariu et al. 2025, Cellpose-SAM). Parameter names are those of cellpose 4's files, so
that they load by name; `benchmarks/cellpose_sam.py` holds the outputs to those of cellpose 4.2.1.1.

Linear layers and convolutions compute in the precision of their weights; what runs past them, from
block to block, and norms stay in float32, because bfloat16's eight bits would be lost anew in
every block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from densebatch.models.network import Conv, Projection

if TYPE_CHECKING:
    from densebatch.models.sam_sizes import SamSizes

_EPS = 1e-6


def _cast(x: torch.Tensor, layer: nn.Linear | nn.Conv2d) -> torch.Tensor:
    return x.to(layer.weight.dtype)


class _PixelNorm(nn.Module):
    """Layer norm over the channels of `(n, c, h, w)`, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float().permute(0, 2, 3, 1)
        x = functional.layer_norm(x, self.weight.shape, self.weight, self.bias, _EPS)
        return x.permute(0, 3, 1, 2)


def _stretch_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Embedding of the distance from each query to each key along an axis, `(grid, grid, c)`.

    The table may know other distances than the patch has; it is then sampled linearly.
    """
    if len(table) != 2 * grid - 1:
        table = functional.interpolate(table.T[None], size=2 * grid - 1, mode="linear")[0].T
    places = torch.arange(grid, device=table.device)
    return table[places[:, None] - places[None, :] + grid - 1]


class _Attention(nn.Module):
    """Attention of all tokens of a patch to all, which knows how far apart they are."""

    def __init__(self, sizes: SamSizes, positions: int) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = Projection(sizes.width, 3 * sizes.width)
        self.proj = Projection(sizes.width, sizes.width)
        head = sizes.width // sizes.heads
        self.rel_pos_h = nn.Parameter(torch.zeros(positions, head))
        self.rel_pos_w = nn.Parameter(torch.zeros(positions, head))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, h, w, c)` of the same."""
        n, height, width, channels = x.shape
        tokens = height * width
        parts = self.qkv(_cast(x, self.qkv)).reshape(n, tokens, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, c / heads)
        placed = query.reshape(n, self.heads, height, width, -1)
        rows = _stretch_positions(self.rel_pos_h, height).to(query.dtype)
        cols = _stretch_positions(self.rel_pos_w, width).to(query.dtype)
        by_row = torch.einsum("nahwc,hkc->nahwk", placed, rows)
        by_col = torch.einsum("nahwc,wkc->nahwk", placed, cols)
        bias = by_row[..., :, None] + by_col[..., None, :]
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias.reshape(n, self.heads, tokens, tokens)
        )
        mixed = mixed.transpose(1, 2).reshape(n, height, width, channels)
        result: torch.Tensor = self.proj(mixed)
        return result


class _Perceptron(nn.Module):
    def __init__(self, sizes: SamSizes) -> None:
        super().__init__()
        self.lin1 = Projection(sizes.width, sizes.hidden)
        self.lin2 = Projection(sizes.hidden, sizes.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.lin2(functional.gelu(self.lin1(_cast(x, self.lin1))))
        return result


class _Block(nn.Module):
    def __init__(self, sizes: SamSizes, positions: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=_EPS)
        self.attn = _Attention(sizes, positions)
        self.norm2 = nn.LayerNorm(sizes.width, eps=_EPS)
        self.mlp = _Perceptron(sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A sum of float32 and bfloat16 is float32.
        x = x + self.attn(self.norm1(x))
        result: torch.Tensor = x + self.mlp(self.norm2(x))
        return result


class _Tokens(nn.Module):
    """Cuts a patch into tokens; a level of names in the files."""

    def __init__(self, sizes: SamSizes) -> None:
        super().__init__()
        self.proj = Conv(sizes.inputs, sizes.width, sizes.token_px, stride=sizes.token_px)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.proj(_cast(x, self.proj))
        return result


class _Encoder(nn.Module):
    def __init__(self, sizes: SamSizes) -> None:
        super().__init__()
        self.patch_embed = _Tokens(sizes)
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.grid, sizes.grid, sizes.width))
        self.blocks = nn.ModuleList(
            _Block(sizes, sizes.count_positions(n)) for n in range(sizes.depth)
        )
        self.neck = nn.Sequential(
            Conv(sizes.width, sizes.neck, 1, bias=False),
            _PixelNorm(sizes.neck),
            Conv(sizes.neck, sizes.neck, 3, padding=1, bias=False),
            _PixelNorm(sizes.neck),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        for layer in self.neck:
            x = layer(_cast(x, layer) if isinstance(layer, nn.Conv2d) else x)
        return x


class CellposeSamNet(nn.Module):
    """Cellpose-SAM's network.

    Parameters
    ----------
    sizes
        `sam_sizes.FULL_SAM` are those of the published files.

    Notes
    -----
    Input is `(n, 3, side, side)`: the normalised membrane and nuclear channels and zeros; the side
    is `sizes.patch_px` and no other, because each token's place has an embedding of its own. Output
    is `(n, 3, side, side)` float32, as `network.CPnet`'s. Every output pixel depends on all of its
    patch.
    """

    def __init__(self, sizes: SamSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.inputs = sizes.inputs
        self.encoder = _Encoder(sizes)
        outputs = 3 * sizes.token_px**2
        self.out = Conv(sizes.neck, outputs, 1)
        # Which output of a token is which of its pixels; fixed, but part of the files.
        pixels = torch.eye(outputs).reshape(outputs, 3, sizes.token_px, sizes.token_px)
        self.W2 = nn.Parameter(pixels, requires_grad=False)
        self.diam_mean = nn.Parameter(torch.full((1,), 30.0), requires_grad=False)
        self.diam_labels = nn.Parameter(torch.full((1,), 30.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return flows at five times unit length and cell-probability logits, `(n, 3, h, w)`."""
        x = self.out(_cast(self.encoder(x), self.out)).float()
        pixels: torch.Tensor = functional.conv_transpose2d(x, self.W2, stride=self.sizes.token_px)
        return pixels
