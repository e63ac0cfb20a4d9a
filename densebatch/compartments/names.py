"""What the compartments of a cell are called."""

NUCLEUS, CYTOPLASM, MEMBRANE = COMPARTMENTS = ("nucleus", "cytoplasm", "membrane")
