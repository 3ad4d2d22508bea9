"""The command line: ``vitrieve COMMAND``.

A command's file holds a frozen dataclass ``Arguments``, whose fields are its flags and whose field docstrings are its
help, and ``run(arguments)``, which returns the exit status. Heavy imports stand inside the functions.

The files in reading order, each of which begins with what it is for: ``main.py``, ``commands.py``, ``former.py``,
``failures.py``, ``signals.py``, ``arguments.py``, ``console.py``, ``streams.py``, ``doctor.py``, ``data.py``,
``weights.py``,
``train.py``, ``evaluate.py``, ``embed.py``, ``index.py``, ``search.py``, ``examples.py``, ``explain.py``, ``serve.py``,
``proxy.py``, ``sync.py``, ``up.py``, ``calibrate.py``, ``reduce.py``, ``export.py``, ``quantize.py``, ``reproduce.py``.
"""
