"""Former spellings of commands and flags. They are still taken, and a note tells the present ones."""

from __future__ import annotations

from collections.abc import Sequence

COMMANDS = {"quantise": "quantize"}
FLAGS = {"embed": {"--images": "--data"}, "quantize": {"--images": "--data"}}


def spell_now(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former spellings by the present ones.

    Args:
        words: The words after ``vitrieve``.

    Returns:
        The words as they are spelled now, and a note for each that was replaced.

    >>> spell_now(["quantise", "--images", "emoji"])[0]
    ['quantize', '--data', 'emoji']
    """
    if not words:
        return [], []
    command, *flags = words
    present = [COMMANDS.get(command, command)]
    notes = [f"the command {command} is called {present[0]} now."] if command in COMMANDS else []
    flag_names = FLAGS.get(present[0], {})
    for word in flags:
        name, equals, value = word.partition("=")
        if name in flag_names:
            notes.append(f"{name} of {present[0]} is called {flag_names[name]} now.")
            word = flag_names[name] + equals + value
        present.append(word)
    return present, notes
