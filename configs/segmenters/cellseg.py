"""Nuclei of a tile by CellSeg's Mask R-CNN: python cellseg.py IMAGE LABELS CLONE [GROWTH_PX].

Follows CellSeg as of July 2022 (`CVSegmenter`, `CVMaskStitcher`), with the numbers of its
`cvconfig.py`. Its boost of the contrast is left out, because the pixels are normalised for the slide
already. It enlarges images by 2.5 itself.
"""

import os
import sys

import numpy as np
import tifffile

image_path, labels_path, clone = sys.argv[1:4]
sys.path.insert(0, clone)

from src.cvsegmenter import CVSegmenter  # noqa: E402
from src.cvstitch import CVMaskStitcher  # noqa: E402

OVERLAP, INCREASE_FACTOR, THRESHOLD = 80, 2.5, 20

image = tifffile.imread(image_path)
nuclei = image.reshape((-1,) + image.shape[-2:])[-1]
rgb = np.repeat(nuclei[:, :, np.newaxis], 3, axis=2)

# It cuts what is larger than 800 px into crops and drops what remains of their division: with rows
# and columns added, nothing of the tile is lost.
pad = [(0, -length % -(-length // 800)) for length in nuclei.shape]
rgb = np.pad(rgb, [*pad, (0, 0)], mode="constant")
weights = os.path.join(clone, "src", "modelFiles", "final_weights.h5")
segmenter = CVSegmenter(rgb.shape, weights, OVERLAP, INCREASE_FACTOR, THRESHOLD)
masks, rows, cols = segmenter.segment_image(rgb)
if any(mask.any() for mask in masks):
    labels = masks[0] if len(masks) == 1 else CVMaskStitcher(OVERLAP).stitch_masks(masks, rows, cols)
else:
    labels = np.zeros(rgb.shape[:2])
height, width = nuclei.shape
# The tifffile of its environment has another function to write; NumPy's format is read as well.
np.save(labels_path, labels[:height, :width].astype(np.uint32))
