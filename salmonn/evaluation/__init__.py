"""Evaluation: tasks as data, generation over a set, scores by libraries, reports."""
