"""The parts of util/convert.py."""
