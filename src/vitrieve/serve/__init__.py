"""Searching over HTTP, for programs and for people.

The files in reading order:

- ``app.py`` makes the application from its arguments.
- ``settings.py`` holds what whoever runs the service decides: bounds, proxy, token.
- ``rates.py`` says how often something may be done in a minute.
- ``metrics.py`` counts for ``/metrics``, also for several processes together.
- ``middleware.py`` is what every request passes first: log, bounds of the head, who may come in.
- ``body.py`` receives a body within bounds, recognizes what it is, and takes forms apart.
- ``schemas.py`` has the models of JSON, and turns a body into a ``SearchRequest``.
- ``pictures.py`` finds pictures of the index and makes small copies.
- ``uploads.py`` keeps what visitors sent, in memory or in a folder that several processes share.
- ``feedback.py`` checks and keeps what people say of results.
- ``overview.py`` keeps what the pages tell of the whole index: pictures to start from, and facets.
- ``service.py`` is one running service: its workers, and the index that is being served.
- ``api.py`` has the endpoints for programs.
- ``views.py`` is what the templates are given, and the address that says what a page shows; also as one file.
- ``map_page.py`` is the page of a map, in the service and as one file.
- ``pages.py`` has the endpoints for people, and the answer to an exception.
- ``changes.py`` changes an index: pictures and metadata come and go, with a record; ``writing.py`` has its endpoints.
- ``collections.py`` reads which collections a service has, and opens them; ``front.py`` has their list.
- ``sheet.py`` draws several pictures as one.
- ``assistant.py`` has what an assistant may ask; ``mcp_server.py`` answers it by the Model Context Protocol.
- ``server.py`` runs all of it with uvicorn, and bounds every connection.
- ``processes.py`` runs several of that at one address.
"""
