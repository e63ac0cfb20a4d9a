"""TIFF files of slides and of labels: the images that they hold, and which of them is meant."""
