"""`python -m experiments` lists the commands."""

from experiments.commands import main

if __name__ == "__main__":
    main()
