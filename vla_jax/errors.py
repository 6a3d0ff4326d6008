"""The one exception for mistakes that the user can repair."""


class UserError(Exception):
    """A user's mistake: its message is one line that says what is wrong, where, and what to do.

    Commands print it without a traceback and exit with status 2 (`experiments.cli`).
    """
