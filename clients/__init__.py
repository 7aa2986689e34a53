"""The Python client of a Demur server. Imports nothing of the server."""
