"""Doors for programs that know nothing of SALMONN: a server that speaks OpenAI's protocol, and lmms-eval's plugin.

May import web, inference and what is below them. Tests: tests/serve/.
"""
