"""`python -m densebatch`."""

from densebatch.cli.main import main

if __name__ == "__main__":
    main()
