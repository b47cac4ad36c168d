"""Normalizing flows."""

from __future__ import annotations
