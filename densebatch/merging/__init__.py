"""Labels of overlapping tiles to labels of the slide; for segmenters that return labels.

Three steps, pure functions of arrays, so that each tile may be another worker's:

1. `facts`: of each tile its labels' areas and boxes, of each two tiles that overlap which labels
   share how many pixels;
2. `decision`: from these tables alone, which labels are the same cell and which copy is kept;
3. `painting`: the pixels of any region, from the tiles that reach into it.

`layout` says which tiles overlap, `in_memory` does all three for arrays.
"""
