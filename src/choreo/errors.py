"""The two ways a command ends early on purpose. `choreo.cli` turns them into exit codes."""


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One line that names the file, the line and the field."""


class Interrupted(Exception):
    """The user stopped the work and its state is saved (exit code 130)."""


def first_line(error: BaseException, most: int = 200) -> str:
    """What an exception of another library says, for a message of our own: its first line, at most `most` letters of
    it, as text that can be encoded. Its type where it says nothing, or a key alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no message"
    if not lines or isinstance(error, KeyError):
        text = f"{type(error).__name__}: {text}"
    return text[:most].encode("utf-8", "replace").decode("utf-8")
