"""The parts of policy networks in Flax NNX: sensor encoder, pooling, fusion, transformer layers."""
