"""The two ways a command ends early on purpose. `choreo.cli` turns them into exit codes."""


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One line that names the file, the line and the field."""


class Interrupted(Exception):
    """The user stopped the work and its state is saved (exit code 130)."""
