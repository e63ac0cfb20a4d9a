"""What turns the pixels of one tile into labels: built-in segmenters, functions and programs.

A segmenter knows no slide, no task and no disk but a temporary folder. `find` gets one by the name
that a user gives, `run` calls it and checks what comes back; `merging` makes cells of the slide of
the labels of many tiles. Libraries that take long to import are imported when a tile needs them.
"""
