"""Recordings of one's own, listed in the ways that people have, as an annotation file (util/make_annotations.py)."""
