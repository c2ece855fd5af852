"""`python -m epsam STAGE --config FILE [section.key=value ...]`."""

from epsam.cli import main

if __name__ == "__main__":
    main()
