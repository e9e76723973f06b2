"""``python -m lowdim``: the command line where the script is not on the path."""

from lowdim.cli import main

if __name__ == "__main__":
    main()
