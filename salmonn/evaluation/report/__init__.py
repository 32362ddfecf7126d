"""Results as people read them: pages, tables, pictures, and the report of one set.

May import the scoring, the judge and what is below them; runs no model. Tests: tests/evaluation/.
"""
