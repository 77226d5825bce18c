"""vLLM's CPU platform, for this test alone: it names a device for Ray, which vLLM's own does not.

Ray then counts a machine's processes as the GPUs that `ray start --num-gpus` promised.
"""

# pyright: reportMissingImports=false

from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    ray_device_key = "GPU"
