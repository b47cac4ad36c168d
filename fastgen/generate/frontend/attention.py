"""Operators of attention, which have no rule."""

from __future__ import annotations

import torch

aten = torch.ops.aten

ATTENTION = (
    aten.scaled_dot_product_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_attention_math.default,
    aten._native_multi_head_attention.default,
    aten._transformer_encoder_layer_fwd.default,
)
