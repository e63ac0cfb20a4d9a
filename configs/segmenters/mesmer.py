"""Cells of a tile by Mesmer: python mesmer.py IMAGE LABELS UM_PER_PX MODEL [nuclear].

Follows deepcell 0.12 (`deepcell.applications.Mesmer.predict`). It wants nuclei, then membrane, as
(batch, y, x, channel). Its own cut at a percentile of the image is off, because it would differ from
tile to tile, and the pixels are normalised for the slide already.
"""

import sys

import numpy as np
import tensorflow as tf
import tifffile
from deepcell.applications import Mesmer

image_path, labels_path, um_per_px, model, *compartment = sys.argv[1:]
image = tifffile.imread(image_path)
planes = image.reshape(-1, *image.shape[-2:])  # membrane, if there is one, then nuclei
nuclei = planes[-1]
membrane = planes[0] if len(planes) > 1 else np.zeros_like(nuclei)

labels = Mesmer(tf.keras.models.load_model(model)).predict(
    np.stack([nuclei, membrane], axis=-1)[np.newaxis],
    image_mpp=float(um_per_px),
    preprocess_kwargs={"threshold": False},
    compartment=compartment[0] if compartment else "whole-cell",
)
tifffile.imwrite(labels_path, labels[0, ..., 0].astype(np.uint32))
