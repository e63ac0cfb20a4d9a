"""The command line: thin commands that read options, call what is below and print."""
