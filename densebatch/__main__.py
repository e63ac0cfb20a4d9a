"""`python -m densebatch`."""

from densebatch.cli import main

if __name__ == "__main__":
    main()
