"""Files of microscopes, each by the library that knows its format; knows no slide."""
