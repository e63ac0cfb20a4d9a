"""Nuclei and cells of one slide: which belongs to which, and the masks within a cell; no disk."""
