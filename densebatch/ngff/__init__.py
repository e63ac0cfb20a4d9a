"""OME-Zarr: what its metadata and folders say of images, read and written; no pixels."""
