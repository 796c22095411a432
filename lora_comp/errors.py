"""Errors for users. Each message is one line that says what is wrong and what to do."""


class LoraCompError(Exception):
    """Invalid input or configuration; the command line prints the message and exits with code 2.

    A message may quote a user's word or file name; control characters in it, such as a newline, are escaped.
    """

    def __init__(self, message: object = ""):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in str(message)))


class ImageError(LoraCompError):
    """An image that cannot be read or written."""


class BitstreamError(LoraCompError):
    """A file that is not a valid bitstream, or that needs weights that are not available."""


class LoraCompWarning(UserWarning):
    """A result that is not what was asked for; the command line prints the message as a note."""


def first_line(error: BaseException) -> str:
    """The message of an error from other libraries as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
