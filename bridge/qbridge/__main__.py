"""`python -m qbridge` is the same program as `qbridge`."""

from qbridge.cli import main

if __name__ == "__main__":
    main()
