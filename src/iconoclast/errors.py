"""One small hierarchy of expected failures; every message says what is wrong, where, and what to do."""


class IconoclastError(Exception):
    """A failure that this program expects. The command line prints its message alone and exits with `exit_code`."""

    exit_code = 1


class UserError(IconoclastError):
    """Something that the user can put right: exit code 2."""

    exit_code = 2


class SettingsError(UserError):
    """A setting that is unknown, has a bad value, or contradicts another."""


class PromptsError(UserError):
    """A prompt set that cannot be read or cannot be used."""


class ModelError(UserError):
    """A model that cannot be loaded, or that has no place to edit."""


class DirectionError(UserError):
    """A direction that cannot be estimated from the data given."""


class RunFolderError(UserError):
    """A run folder or output folder that cannot be used for what was asked."""


class MeasurementError(IconoclastError):
    """A measurement that broke down: exit code 1."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its class if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def one_line(text: str, length: int = 200) -> str:
    """Return the text with nothing in it that breaks a line or steers a terminal, cut to so many characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[:length]}…"
