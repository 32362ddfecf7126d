"""The three stages: the loop, its steps, validation, checkpoints to go on from, logs (paper, section 4).

May import preflight, data, model and what is below them. Tests: tests/training/.
"""
