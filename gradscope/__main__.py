"""`python -m gradscope`."""

from gradscope.shells.cli import main

if __name__ == "__main__":
    main()
