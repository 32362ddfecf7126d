"""Judges of free answers: an OpenAI-compatible endpoint, a local LLM, or containment; their prompts and kept replies.

May import examples and predictions (clips, requests), model, config, common. Tests: tests/evaluation/test_judge*.py.
"""
