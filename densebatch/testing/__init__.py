"""Conformance tests of segmenters, for plug-ins as for densebatch's own."""
