"""Two processes share a model, as two Macs would: heads and experts split (tensor), or layers (pipeline)."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from samples import ours, prompts

from axk1.checkpoint.convert import convert_checkpoint

RANK = Path(__file__).with_name("mlx_rank.py")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.parametrize("way", ["tensor", "pipeline"])
def test_two_processes(way: str, nano: Path, tmp_path: Path) -> None:
    convert_checkpoint(nano, tmp_path / "model", max_shard_size="3MB")  # a pipeline needs an index
    ids = prompts(3, 6_000)[2]
    hosts, asked, answered = (tmp_path / name for name in ("hosts.json", "ids.json", "logits.npy"))
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(2)]))
    asked.write_text(json.dumps(ids))
    command = [sys.executable, str(RANK), way, str(tmp_path / "model"), str(asked), str(answered)]
    ranks = []
    for rank in range(2):
        variables = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), "OMP_NUM_THREADS": "1"}
        ranks.append(subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True))
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    with torch.no_grad():
        expected = ours(nano)(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert (torch.from_numpy(np.load(answered)).log_softmax(-1) - expected).abs().max() < 1e-4
