"""What a setting may be by name, where more than training knows the names: a search imports no setting of training."""

from __future__ import annotations

from typing import Literal

Framing = Literal["crop", "square"]
Pooling = Literal["cls", "average", "max", "gem", "rmac", "native"]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
