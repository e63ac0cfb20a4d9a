"""Flows to the cells of one tile; touches no disk and knows no slide."""
