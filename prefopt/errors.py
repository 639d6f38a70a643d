"""The exceptions whose message is meant for a person.

Each is raised with a single clear sentence that names the file, line or key and says what to do, and
is printed without a traceback: UserError exits with 2, RunFailed with 1. A mistake of ours is an
``assert`` or an ordinary exception, and exits with 1.
"""


class UserError(Exception):
    """The input is wrong; the message says where and what to do about it."""


class RunFailed(Exception):
    """The run cannot go on although its input was right: a full disk, a diverged loss.

    The message says what happened and how to continue; the command line prints it and exits with 1,
    without a traceback.
    """


class Stopped(Exception):
    """A signal stopped the work, what was done is kept, and the message says how to go on with it. Exit code 75."""
