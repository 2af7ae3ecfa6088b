"""What ends a command early: a message for a person and an exit code. This module must not know any command."""

EXIT_FAILED = 1
EXIT_INVALID = 2


class CommandError(Exception):
    """Ends the command. Each line stands on its own and names the file, the field or the flag, and the fix."""

    def __init__(self, *lines: str, exit_code: int = EXIT_INVALID) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.exit_code = exit_code
