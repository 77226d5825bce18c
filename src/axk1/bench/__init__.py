"""Speed against other engines and against the machine's limits; what `axk1 bench` runs. Start reading at ``run.py``.

``models`` makes or finds the weights, ``engines`` lists who takes part, ``client`` talks to their processes (scripts in
``workers``), ``run`` measures in turns, ``bounds`` says what the machine would allow, ``report`` and ``plot`` write it.
"""
