"""The command line. The only place with click, progress bars and exit codes."""

from onnxq.cli.main import main

__all__ = ["main"]
