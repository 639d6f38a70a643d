"""From the host to the device, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(host: Tensor, device: torch.device | str) -> Tensor:
    """``host`` on ``device``. A GPU fetches it from pinned memory by itself, when it comes to it."""
    device = torch.device(device)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
