"""Texts of unknown origin as they may be printed: nothing in them moves a cursor, reorders letters or begins a line."""


def printable(text: str, most: int | None = None) -> str:
    """Returns a text with a backslash escape for whatever is not printable (`str.isprintable`), on one line.

    That is controls of terminals (C0, C1, DEL), separators of lines and paragraphs, marks of text direction and other
    invisible ones, lone surrogates, and what Unicode has not assigned.

    Args:
        text: the text.
        most: how many characters the result may have; None: as many as it takes.
    """
    text = text[:most]
    return text if text.isprintable() else "".join(map(_escaped, text))[:most]


def printable_lines(text: str) -> str:
    """Likewise for a text of several lines, such as a traceback, indented since none is an event."""
    return "\n".join("  " + printable(line) for line in text.split("\n"))


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
