"""OpenVLA-OFT with fused vision tokens: configuration, processor, model, checkpoints."""
