"""`python -m gsync`: the same as the `gsync` command."""

from gsync.cli.main import main

if __name__ == "__main__":
    main()
