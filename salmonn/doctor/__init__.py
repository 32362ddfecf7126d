"""Checks of an installation and of a config: what is missing or broken, and what that costs.

May import everything but commands. Tests: tests/doctor/.
"""
