"""What a user should know of a slide's pixels, in sentences."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING

from densebatch.base.names import count_of
from densebatch.survey.brightfield import looks_brightfield
from densebatch.survey.kernels import BLOCK_PX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from densebatch.slides.slide import Slide
    from densebatch.survey.channel import ChannelSurvey

_UNEVEN_TIMES = 10.0  # from which a part of a slide that is brighter than the rest is told


def explain_light(slide: Slide) -> Iterator[str]:
    """Say so if a slide looks like a brightfield picture."""
    if looks_brightfield(slide):
        yield (
            "the slide looks like a brightfield picture (light background, dark content): the "
            "bundled models find what is bright on a dark background, so that cells are missed "
            "or wrong"
        )


def explain_pixels(surveys: Sequence[ChannelSurvey]) -> Iterator[str]:
    """Notes on channels in which a user would not expect what is found."""
    for survey in surveys:
        b = survey.bounds
        for piece, reason in list(survey.unread.items())[:1]:
            yield (
                f"channel {b.name}: {count_of(len(survey.unread), 'piece')} cannot be read, the "
                f"first at pixels {list(astuple(piece))} ({reason}): the normalisation leaves them "
                "out, and the result lacks what depends on those that cannot be read later either"
            )
        if b.nonfinite_px:
            yield (
                f"channel {b.name}: {b.nonfinite_px} pixels are NaN or infinite; the network sees "
                "0 there, for plus infinity 1"
            )
        if b.above is not None:
            yield (
                f"channel {b.name}: spots of more than {b.above:.6g}, up to {b.debris_times:.3g} "
                f"times as bright as the tissue, in {b.debris_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, are taken for debris: the normalisation leaves them out and the "
                "network sees 0 there; if they are cells, give --no-mask-debris"
            )
        if b.bright is not None:
            yield (
                f"channel {b.name}: spots of more than {b.bright:.6g}, up to {b.bright_times:.3g} "
                f"times as bright as the tissue, in {b.bright_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, are taken for rare bright cells: the normalisation leaves them "
                "out, and the network is shown the tissue without them and them on their own "
                "scale; --no-mask-debris shows all on one scale"
            )
        if b.dead is not None:
            yield (
                f"channel {b.name}: pixels of {b.dead:.6g} and less lie far below all others and "
                "are taken for dead or empty: the normalisation leaves their blocks out and the "
                "network sees 0 there; if that is wrong, give --no-mask-debris"
            )
        if survey.strewn:
            yield (
                f"channel {b.name}: normalised by {b.tissue_fraction:.2%} of the blocks of "
                f"{BLOCK_PX} px, strewn over the slide and far brighter than all others (upper "
                f"bound {b.high:.6g}; 99 % of the pixels are up to {survey.usual_px:.6g}); if "
                "these are not the cells, blacken them or crop the slide"
            )
        if survey.uneven_times >= _UNEVEN_TIMES:
            yield (
                f"channel {b.name}: parts of the slide are up to {survey.uneven_times:.3g} times "
                "as bright as the rest, which looks like tissue by itself; they count in the "
                f"normalisation (upper bound {b.high:.6g}), so that the rest may be seen as "
                "background; if they are no cells, blacken them"
            )
        if survey.saturated_px is not None:
            yield (
                f"channel {b.name}: saturated, its brightest pixels, at least a hundredth of the "
                f"tissue, are all {survey.saturated_px:.6g}; cells are told apart less well there"
            )
        if b.high <= b.low:
            yield f"channel {b.name}: has no contrast, so nothing is found in it"
