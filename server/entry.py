"""Where the `demur` command begins: says what is missing where only the client is installed."""

import sys


def main() -> None:
    """Runs the command line."""
    try:
        from demur.server.cli import main as command_line
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("demur"):
            raise
        sys.exit(
            f"demur: {error.name} is missing: the command needs the server, pip install 'demur[cpu]' or 'demur[gpu]' "
            "(plain demur is the Python client)"
        )
    command_line()
