"""The one exception that is the user's to mend.

Raised with a single clear sentence that names the file, line or key and says what to do.
The command line prints it and exits with 2, without a traceback. A mistake of ours is an
``assert`` or an ordinary exception, and exits with 1.
"""


class UserError(Exception):
    """The input is wrong; the message says where and what to do about it."""
