"""How good a synthetic dataset is: fidelity, label agreement, style, diversity, privacy.

Metrics work on `SliceSet`s and arrays, real or generated, by synthgen or by others; none of them
knows a generator. Each number stands beside its reference between real subjects.
"""
