"""Two processes on gloo: tensor and expert parallel give our states, and the norm sees the reduced sum."""

# pyright: reportMissingImports=false
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sglang_forward import CLOSE, our_draft
from test_sglang_weights import ours

WORKER = Path(__file__).with_name("sglang_worker.py")


def run_two(tmp_path: Path, folder: Path, **options: Any) -> list[dict[str, torch.Tensor]]:
    """What each of two processes saved."""
    out = tmp_path / "out"
    arguments = [str(tmp_path / "store"), str(folder), str(out), json.dumps({"tp_size": 2, **options})]
    commands = [[sys.executable, str(WORKER), str(rank), *arguments] for rank in range(2)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for command in commands]
    try:
        told = [process.communicate(timeout=240)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], told[0] + told[1]
    return [torch.load(out.with_suffix(f".{rank}")) for rank in range(2)]


@pytest.mark.parametrize(("ep_size", "experts", "width"), [(1, 8, 1), (2, 4, 2)])
def test_two_processes_give_our_states(
    tmp_path: Path, checkpoints: dict[str, Path], ep_size: int, experts: int, width: int
):
    """``ep_size=1`` splits every expert, 2 gives each process half of them; the shared expert is split in both."""
    found = run_two(tmp_path, checkpoints["released"], ep_size=ep_size)
    model = ours(checkpoints["released"])
    ids = torch.arange(2, 22)
    with torch.no_grad():
        states = model.model(ids[None]).last_hidden_state[0]
        drafted = our_draft(model, states[:-1], ids[1:])
    for rank in found:
        assert rank["experts_here"] == experts and rank["width_here"] == width * model.config.moe_intermediate_size
        torch.testing.assert_close(rank["states"], states, **CLOSE)
        torch.testing.assert_close(rank["drafted"], drafted, **CLOSE)
        assert torch.equal(rank["normed"], rank["complete"]), "the norm is given the sum over both processes"
    parts = [rank["partial"] for rank in found]
    assert not torch.allclose(parts[0], parts[1], atol=1e-2), "each process brings another part"
    torch.testing.assert_close(parts[0] + parts[1], found[0]["complete"], **CLOSE)
