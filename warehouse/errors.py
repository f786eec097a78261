"""The one exception for mistakes that a user can mend; the command line shows it as a sentence, without a traceback."""


class UserError(Exception):
    """What is wrong, where (recipe field, file or row), and how to mend it, in one sentence."""
