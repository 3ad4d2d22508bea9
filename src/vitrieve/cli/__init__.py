"""The command line: ``vitrieve COMMAND``.

In reading order: ``main.py`` (the table of commands, and what happens with errors), ``arguments.py`` (flags from a
dataclass), ``console.py`` (what is printed where), then one short file per command. A command's file holds a frozen
dataclass ``Arguments``, whose fields are its flags and whose field docstrings are its help, and ``run(arguments)``,
which returns the exit status. Heavy imports stand inside the functions.
"""
