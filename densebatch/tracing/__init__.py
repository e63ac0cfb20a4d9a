"""Flows to the cells of one tile; touches no disk and knows no slide.

`tile` tells the story and calls, in this order, `foreground` (which pixels), `dynamics` (follow
them: `follow` on a CPU, `device` on a GPU, `follow_plain` for the reader), `seeds` (where they
gather), `dynamics` again (flow errors: `quality` on a CPU) and `quality` (which cells are kept).
`candidates` is the table that they hand on, `diffusion` the flows that a shape ought to have.
"""
