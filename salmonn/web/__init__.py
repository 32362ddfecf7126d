"""The web page: upload or record a clip, ask about it, watch the answer appear.

May import inference and what is below it. Tests: tests/web/.
"""
