"""llama.cpp's file types: their names, and the bits of a weight of A.X K1 in each, for arithmetic."""

FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q5_k_s": "MOSTLY_Q5_K_S",
    "q4_k_m": "MOSTLY_Q4_K_M",
    "q4_k_s": "MOSTLY_Q4_K_S",
    "iq4_xs": "MOSTLY_IQ4_XS",
    "q3_k_m": "MOSTLY_Q3_K_M",
    "q2_k": "MOSTLY_Q2_K",
    "q4_0": "MOSTLY_Q4_0",
    "mxfp4_moe": "MOSTLY_MXFP4_MOE",
}
"""What ``axk1 export gguf`` writes, by the names of the package ``gguf``."""
PLAIN = ("f32", "f16", "bf16", "q8_0")
"""Those with one type for all matrices, which need no quantiser of llama.cpp's."""
K1_BITS = {
    "f32": 32.0000,
    "f16": 16.0026,
    "bf16": 16.0026,
    "q8_0": 8.5038,
    "q6_k": 6.5676,
    "q5_k_m": 5.6754,
    "q5_k_s": 5.5069,
    "q4_k_m": 4.8367,
    "q4_k_s": 4.5426,
    "iq4_xs": 4.3011,
    "q3_k_m": 3.8165,
    "q2_k": 2.9115,
    "q4_0": 4.5091,
    "mxfp4_moe": 4.3449,
}
"""Bits of a weight of the released architecture, all tensors together, as llama.cpp's quantiser mixes their types;
``tests/integration/llamacpp`` computes them anew."""
