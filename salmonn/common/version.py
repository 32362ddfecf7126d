"""Our version; all that names it takes it from here."""

__version__ = "0.1.0"
