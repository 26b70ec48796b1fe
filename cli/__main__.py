"""`python -m datalayer.cli`, for where the script is not on the path."""

from datalayer.cli import main

if __name__ == "__main__":
    main()
