"""One of several processes that share a model: ``python mlx_rank.py tensor|pipeline MODEL IDS.json LOGITS.npy``."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np

from axk1.integrations.mlx import register

register()
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import sharded_load  # noqa: E402

way, folder, asked, answered = sys.argv[1:]
group = mx.distributed.init(strict=True, backend="ring")
model, _ = sharded_load(folder, *((None, group) if way == "tensor" else (group, None)))
ids = json.loads(Path(asked).read_text())
cache = make_prompt_cache(model)
parts = [model(mx.array([part]), cache) for part in (ids[:20], *([token] for token in ids[20:]))]
logits = mx.concatenate(parts, axis=1)
mx.eval(logits)
if group.rank() == 0:
    np.save(answered, np.array(logits[0]))
