"""Conformance tests of segmenters, for plug-ins as for densebatch's own.

One line in a plug-in's tests:

    from densebatch.testing import check_segmenter

    def test_it():
        check_segmenter("my_module:label")
"""

from __future__ import annotations

from densebatch.testing.conformance import CheckFailedError, Report, check_segmenter

__all__ = ["CheckFailedError", "Report", "check_segmenter"]
