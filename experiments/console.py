"""What commands print to: tables that stay whole without a terminal."""

from rich.console import Console

# Rich folds everything into 80 columns where there is no terminal to ask.
COLUMNS_WITHOUT_TERMINAL = 150


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Returns a console for a command's results, or with `stderr` for what it is doing; `quiet` prints nothing."""
    console = Console(stderr=stderr, highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = COLUMNS_WITHOUT_TERMINAL
    return console
