"""A slide becomes an OME-Zarr with all its channels: copied shard by shard, compared, and whole."""
