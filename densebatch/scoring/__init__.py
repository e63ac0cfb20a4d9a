"""Labels against ground truth: overlaps, matches, scores, reports.

`score_labels` is the entry. Nothing here imports torch, and only `files` imports Dask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densebatch.scoring.score import score_labels

__all__ = ["score_labels"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import on first use, so that a module of this package loads no other."""
    if name != "score_labels":
        raise AttributeError(f"module 'densebatch.scoring' has no attribute {name!r}")
    from densebatch.scoring.score import score_labels

    return score_labels
