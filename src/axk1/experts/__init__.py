"""Routed experts that stay in their files: where each one's bytes are, and a cache of fixed size that reads them.

An expert is (file, offset, bytes). ``places.py`` finds them in a checkpoint of any layout, ``store.py`` puts a cache in
front of them and connects it to a model loaded without its experts; ``simulate.py`` counts what other caches would have
hit. The reading itself is ``kernels/cpu/stream.h``. To read first: ``docs/streaming.md``.
"""
