"""Which part of a slide counts: outlines or a mask from a file, as runs of pixels in each row."""
