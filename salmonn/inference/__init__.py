"""A loaded model that hears clips, also long ones, and answers questions about them.

May import preflight, data, model and what is below them. Tests: tests/inference/.
"""
