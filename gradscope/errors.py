"""The base of all errors that gradscope shows to its users."""


class GradscopeError(Exception):
    """An error that reaches the user as one clear line; `exit_code` is what the command line ends with."""

    exit_code = 2


class Interrupted(BaseException):
    """A process that the program has forked was ended by Ctrl-C, which is shown already: Python ends by the signal."""
