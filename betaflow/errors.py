"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: one clear message that says what to do.

    Entry points print it without a traceback and exit with status 2.
    """
