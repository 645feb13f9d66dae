"""The root of every error Convoy raises on purpose. It lies under all layers, so that `spec` may raise one too."""

from orchestrator.json_values import JsonObject


class ConvoyError(Exception):
    """A failure with a message a person can act on.

    `exit_code` is what the command line ends with: 2 for a mistake in what the user gave us,
    1 for a run or a machine that failed.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def details(self) -> JsonObject:
        """What a program wants to know of it, as JSON values: they travel between processes with the message."""
        return {}
