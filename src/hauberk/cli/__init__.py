"""The command line. Nothing here loads torch before a command needs it, so that help answers at once."""

from hauberk.cli.app import app as app
from hauberk.cli.app import main as main

__all__ = ["app", "main"]
