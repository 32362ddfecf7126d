"""SALMONN itself (paper, section 3): encoders, window-level Q-Former, LLM with LoRA, loss, answers, checkpoints.

May import audio, config, common; knows no data set, no run and no evaluation. Tests: tests/model/.
"""
