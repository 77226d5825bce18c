"""The server of ``axk1 serve``: three dialects of HTTP over one engine.

``replies.py`` turns what a request asks for into an engine's requests and their tokens into events; the files of
``routes/`` translate only: OpenAI's chat, completions and responses, and Anthropic's messages.
"""
