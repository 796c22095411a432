"""What can go wrong in a user's hands. Each message is one line: what is wrong and what to do."""


class LoraCompError(Exception):
    """A mistake in the input or the configuration; the command line prints it and exits with code 2."""


class ImageError(LoraCompError):
    """An image that cannot be read or written."""


class BitstreamError(LoraCompError):
    """A file that is not a valid coded image, or that needs other weights than those at hand."""
