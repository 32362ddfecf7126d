"""What `util/small.py` does, part by part: sources, conversions, sentences, voices, recordings, tasks, report."""
