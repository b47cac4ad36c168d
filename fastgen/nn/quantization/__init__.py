"""Between levels and real numbers: codebooks and dequantization."""
