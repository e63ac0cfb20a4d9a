"""What is measured of cells: shapes and intensities, shard by shard, and the table they make.

`shard` measures a shard of the labels, `parts` keeps what came of it, `totals` adds the shards of a
slide, and `table` writes the columns that `schema` lists. Which cells are positive is decided last,
by `positivity`, as `markers` reads it of the user and with the cuts that `cuts` finds. Stands above
`cells`, whose labels it measures; `upkeep.measure` and `stages.number` decide which labels and
pixels those are.
"""
