"""The kubelet's expansion of $(VAR) in a container's command, arguments and environment.

As Kubernetes does it: `$(NAME)` becomes the variable's value, an unknown one stays as it is, `$$` becomes `$`.
This module must not know containers.
"""

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\$(?:(\$)|\(([^()]*)\))")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`text` with its references replaced."""

    def replaced(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replaced, text)
