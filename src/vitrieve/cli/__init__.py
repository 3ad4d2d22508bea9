"""The command line: ``vitrieve COMMAND``.

A command's file holds a frozen dataclass ``Arguments``, whose fields are its flags and whose field docstrings are its
help, and ``run(arguments)``, which returns the exit status: it reads the flags, calls the public function, and prints.
Heavy imports stand inside the functions.

The files in reading order, each of which begins with what it is for: ``main.py``, ``failures.py``, ``verbosity.py``,
``arguments.py``, ``console.py``, ``flags.py``, ``help_text.py``, ``files.py``, ``doctor.py``, ``data.py``,
``data_audit.py``, ``data_pack.py``, ``weights.py``, ``train.py``, ``runs.py``, ``evaluate.py``, ``compare.py``,
``reduce.py``, ``adapt.py``, ``align.py``, ``reproduce.py``, ``export.py``, ``quantize.py``, ``push.py``, ``embed.py``,
``index.py``, ``sync.py``, ``up.py``, ``calibrate.py``, ``duplicates.py``, ``map.py``, ``search.py``, ``explain.py``,
``serve.py``, ``feedback.py``, ``mcp.py``, ``values.py``, ``fitting.py``, ``defaults.py``, ``config.py``,
``completion.py``.
"""
