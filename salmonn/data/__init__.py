"""From annotation files to batches: entries, clip paths, what cannot be read, samples, loaders.

May import audio, config, common; knows no model. Tests: tests/data/.
"""
