"""Small tools for every room: errors and exit codes, files, processes, devices, ranks, charts, the type of a batch.

Imports nothing else of salmonn. Tests: tests/common/.
"""
