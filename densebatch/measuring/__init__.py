"""What is measured of cells: shapes and intensities, shard by shard, and the table they make.

`shard` measures a shard of the labels, `parts` keeps what came of it, `totals` adds the shards of a
slide, and `table` writes the columns that `schema` lists. Stands above `cells`, whose labels it
measures; `upkeep.measure` and `stages.number` decide which labels and pixels those are.
"""
