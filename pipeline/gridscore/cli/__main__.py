"""`python -m gridscore.cli` is `gridscore`, for where the script is not on the path."""

from gridscore.cli import main

if __name__ == "__main__":
    main()
