"""The exception that ends a command with one sentence instead of a traceback."""


class UserError(Exception):
    """A mistake or circumstance that the user can put right; the message says how.

    Args:
        message: What is wrong and what to do.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
