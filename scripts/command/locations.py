"""Where the bundle lies: its root and its configs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIGS", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
