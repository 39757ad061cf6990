"""The exceptions that mean: the user can put this right, and the message says how."""

from __future__ import annotations


class UserError(Exception):
    """A problem a user can solve.

    The message is one sentence that names the setting or file, its value and what would be right. The command-line
    scripts print it without a traceback and leave with exit status 2.
    """


class SharedError(UserError):
    """A problem that all processes of a run have learnt of; the first one tells the user."""
