"""What goes wrong before a request can be made."""


class KubeAccessError(ValueError):
    """There is no usable way to the API server. The message names the file and the fix."""
