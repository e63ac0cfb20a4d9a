"""Objects of a tile by a Mask R-CNN: python mask_rcnn.py IMAGE LABELS MODULE:CONFIG WEIGHTS.

Follows Mask_RCNN 2.1 (`mrcnn.model.MaskRCNN.detect`), which gives a mask (y, x) for each object. Of
two that claim a pixel the one with the better score has it. A network with another interface
differs in the three lines at `model`.
"""

import importlib
import sys

import mrcnn.model
import numpy as np
import tifffile

image_path, labels_path, config, weights = sys.argv[1:]
image = tifffile.imread(image_path)
planes = image.reshape((-1,) + image.shape[-2:])  # membrane, if there is one, then nuclei
# Red is membrane, green nuclei: as the network was trained, and grey for nuclei alone.
rgb = np.stack([planes[-1]] * 3 if len(planes) == 1 else [planes[0], planes[1], 0 * planes[0]], 2)

module, _, name = config.partition(":")
settings = getattr(importlib.import_module(module), name)()
model = mrcnn.model.MaskRCNN(mode="inference", config=settings, model_dir=".")
model.load_weights(weights, by_name=True)
found = model.detect([rgb], verbose=0)[0]

labels = np.zeros(rgb.shape[:2], np.uint32)
for number in np.argsort(found["scores"]):  # the best last, so that it covers others
    labels[found["masks"][:, :, number].astype(bool)] = number + 1
tifffile.imwrite(labels_path, labels)
