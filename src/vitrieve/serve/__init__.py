"""Searching over HTTP, for programs and for people.

The files in reading order, each of which begins with what it is for: ``app.py``, ``limits.py``, ``service.py``,
``observe.py``, ``front.py``, ``gate.py``, ``place.py``, ``connections.py``, ``body.py``, ``schemas.py``,
``questions.py``, ``pictures.py``, ``api.py``, ``address.py``, ``view.py``, ``pages.py``, ``refusals.py``, ``run.py``,
``requirements.py``.
"""
