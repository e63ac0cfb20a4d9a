"""The kinds of flow models that densebatch has itself: Cellpose 1-3 and Cellpose-SAM.

`models.flow_models` says what a kind is. Cellpose 4's other networks are known by name, to say why
they are refused.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from densebatch.models.sam_sizes import WHY_NO_DINO, SamSizes
from densebatch.models.weights_file import infer_widths

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from densebatch.models.network import CPnet
    from densebatch.models.sam import CellposeSamNet

_CELLPOSE_DIAMETER_PX = 30.0
_FLOAT_BYTES = 4
_MAX_LEVELS = 5  # patches are multiples of 16 px
_ALIVE_FEATURES = 20  # maps of the first width that a patch's evaluation holds at once


class Cpnet:
    """The residual U-Net of Cellpose 1 to 3 (`models.network`)."""

    name = "cpnet"
    title = "Cellpose 1-3 networks"
    inputs: tuple[str, ...] = ("membrane", "nuclei")
    multiple = 16  # Cellpose's own padding; the network's stride divides it
    stretches = True
    libraries: tuple[str, ...] = ("torch", "compile", "openvino")
    max_weights = 2**28  # Cellpose's largest has 6.6 million

    def recognises(self, names: Collection[str]) -> bool:
        """See `flow_models.FlowModel`."""
        return any(name.startswith("downsample.down.res_down_") for name in names)

    def infer_sizes(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Channels of the input and of each resolution; see `flow_models.FlowModel`."""
        try:
            widths = infer_widths(shapes)
        except ValueError as error:
            raise ValueError(f"{error}; accepted are {self.title}") from error
        if widths[0] != len(self.inputs):
            raise ValueError(f"takes {widths[0]} input channels; accepted are 2")
        if len(widths) - 1 > _MAX_LEVELS:
            raise ValueError(f"has {len(widths) - 1} resolutions; accepted are 2 to {_MAX_LEVELS}")
        return widths

    def describe(self, sizes: tuple[int, ...], diameters: Mapping[str, float]) -> dict[str, Any]:
        """See `flow_models.FlowModel`."""
        del sizes
        diameter = diameters.get("diam_mean", _CELLPOSE_DIAMETER_PX)
        return {
            "diameter_px": diameter,
            "default_diameter_px": diameters.get("diam_labels", diameter),
        }

    def build(self, sizes: tuple[int, ...]) -> CPnet:
        """See `flow_models.FlowModel`."""
        from densebatch.models.network import CPnet

        return CPnet(sizes)

    def count_weights(self, sizes: tuple[int, ...]) -> int:
        """See `flow_models.FlowModel`; an upper bound.

        A resolution has nine 3x3 convolutions, of its own width or the next one's.
        """
        widths = [*sizes[1:], sizes[-1]]
        return sum(9 * 9 * wide * max(wide, next_) for wide, next_ in itertools.pairwise(widths))

    def patch_bytes(self, sizes: tuple[int, ...], height: int, width: int) -> int:
        """See `flow_models.FlowModel`."""
        return height * width * sizes[1] * _FLOAT_BYTES * _ALIVE_FEATURES

    def patch_flop(self, sizes: tuple[int, ...], height: int, width: int) -> int | None:
        """None, because its convolutions are far from the speed of matrix products."""
        del sizes, height, width
        return None


_SAM_OUTPUTS = 3
_MAX_GRID = 128
_MAX_POSITIONS = 4095


class CellposeSam:
    """Cellpose 4's network on the image encoder of Segment Anything (`models.sam`)."""

    name = "cellpose-sam"
    title = "Cellpose-SAM (4.x) networks"
    inputs: tuple[str, ...] = ("membrane", "nuclei", "empty")
    multiple = 1  # the patch is what its position embedding says, and no other
    stretches = False
    libraries: tuple[str, ...] = ("torch", "compile")
    max_weights = 2**29  # ViT-L has 304 million

    def recognises(self, names: Collection[str]) -> bool:
        """See `flow_models.FlowModel`."""
        is_cellpose_4 = "W2" in names or any(name.startswith("encoder.") for name in names)
        return is_cellpose_4 and not _is_dino(names)

    def infer_sizes(self, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        """Those of `SamSizes`; see `flow_models.FlowModel`."""
        try:
            return tuple(self._infer_sizes(shapes))
        except ValueError as error:
            raise ValueError(f"is a Cellpose-SAM (4.x) network, but {error}") from error

    def _infer_sizes(self, shapes: Mapping[str, Sequence[int]]) -> SamSizes:
        token = _take(shapes, "encoder.patch_embed.proj.weight", 4)
        places = _take(shapes, "encoder.pos_embed", 4)
        blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.blocks.")}
        depth = len(blocks)
        if blocks != {str(n) for n in range(depth)} or not depth:
            raise ValueError(f"its {depth} blocks are not numbered from 0")
        positions = [_take(shapes, f"encoder.blocks.{n}.attn.rel_pos_h", 2) for n in range(depth)]
        lengths = [length for length, _ in positions]
        width, head = token[0], positions[0][1]
        if head < 1 or width % head:
            raise ValueError(f"its heads of {head} numbers do not divide tokens of {width}")
        every = lengths.index(max(lengths)) + 1
        sizes = SamSizes(
            inputs=token[1],
            width=width,
            heads=width // head,
            hidden=_take(shapes, "encoder.blocks.0.mlp.lin1.weight", 2)[0],
            neck=_take(shapes, "encoder.neck.0.weight", 4)[0],
            token_px=token[2],
            grid=places[1],
            depth=depth,
            wide=max(lengths),
            narrow=min(lengths),
            every=every,
        )
        if sizes.inputs != len(self.inputs):
            raise ValueError(f"takes {sizes.inputs} input channels; accepted are 3")
        outputs = _take(shapes, "out.weight", 4)[0]
        if outputs != _SAM_OUTPUTS * sizes.token_px**2:
            raise ValueError(
                f"has {outputs} outputs for tokens of {sizes.token_px} px; accepted are "
                f"{_SAM_OUTPUTS * sizes.token_px**2}, flows and cell probability"
            )
        if not 1 <= sizes.grid <= _MAX_GRID or not 1 <= sizes.wide <= _MAX_POSITIONS:
            raise ValueError(
                f"has {sizes.grid} tokens along a side and {sizes.wide} relative positions; "
                f"accepted are up to {_MAX_GRID} and {_MAX_POSITIONS}"
            )
        return sizes

    def describe(self, sizes: tuple[int, ...], diameters: Mapping[str, float]) -> dict[str, Any]:
        """Cells of 30 px, whatever the file says, as Cellpose 4 takes it.

        The margin is a little below what Cellpose's overlap comes to, a patch blended into the
        next over a tenth of its side at each end.
        """
        del diameters
        return {
            "diameter_px": _CELLPOSE_DIAMETER_PX,
            "default_diameter_px": _CELLPOSE_DIAMETER_PX,
            "patch_px": SamSizes(*sizes).patch_px,
            "margin_px": 16,
        }

    def build(self, sizes: tuple[int, ...]) -> CellposeSamNet:
        """See `flow_models.FlowModel`."""
        from densebatch.models.sam import CellposeSamNet

        return CellposeSamNet(SamSizes(*sizes))

    def count_weights(self, sizes: tuple[int, ...]) -> int:
        """See `flow_models.FlowModel`; but for biases and relative positions."""
        s = SamSizes(*sizes)
        block = 4 * s.width**2 + 2 * s.width * s.hidden
        token = s.inputs * s.token_px**2
        out = s.neck * _SAM_OUTPUTS * s.token_px**2
        return s.depth * block + (token + s.grid**2 + s.neck) * s.width + 9 * s.neck**2 + out

    def patch_bytes(self, sizes: tuple[int, ...], height: int, width: int) -> int:
        """Of a block: what attention adds for each pair of tokens, twice, and its maps."""
        s = SamSizes(*sizes)
        tokens = math.ceil(height / s.token_px) * math.ceil(width / s.token_px)
        maps = tokens * (8 * s.width + 2 * s.hidden)
        return _FLOAT_BYTES * (2 * s.heads * tokens**2 + maps + 4 * height * width)

    def patch_flop(self, sizes: tuple[int, ...], height: int, width: int) -> int | None:
        """Two for each weight and token, and for each pair of tokens in attention."""
        s = SamSizes(*sizes)
        tokens = math.ceil(height / s.token_px) * math.ceil(width / s.token_px)
        return 2 * tokens * (self.count_weights(sizes) + 2 * s.depth * s.width * tokens)


def _is_dino(names: Collection[str]) -> bool:
    """Whether the encoder is DINOv3's, by what only that has."""
    marks = ("encoder.cls_token", "encoder.storage_tokens", "encoder.mask_token")
    return any(
        name.startswith(marks) or name.startswith("encoder.rope_embed") or ".ls1." in name
        for name in names
    )


def _take(shapes: Mapping[str, Sequence[int]], name: str, axes: int) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"weights {name!r} are missing")
    shape = tuple(int(length) for length in shapes[name])
    if len(shape) != axes:
        raise ValueError(f"weights {name!r} have {len(shape)} axes, not {axes}")
    return shape


def name_stranger(names: Collection[str]) -> str:
    """What a file is that is of no kind, as far as its tensors' names tell."""
    if _is_dino(names):
        return f"is a Cellpose-DINO (4.x) network: {WHY_NO_DINO}"
    if any(name.startswith(("image_encoder.", "mask_decoder.")) for name in names):
        return "is Segment Anything itself, which gives no flows, and not a Cellpose-SAM network"
    return "no 'downsample.down.res_down_N.proj' weights: not a Cellpose 1-3 network"
