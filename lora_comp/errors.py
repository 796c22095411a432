"""What can go wrong in a user's hands. Each message is one line: what is wrong and what to do."""


class LoraCompError(Exception):
    """A mistake in the input or the configuration; the command line prints it and exits with code 2."""


class ImageError(LoraCompError):
    """An image that cannot be read or written."""


class BitstreamError(LoraCompError):
    """A file that is not a valid coded image, or that needs other weights than those at hand."""


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, on one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
