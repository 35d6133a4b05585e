"""The training loop shared by all: steps, checkpoints, exact resume, sample sheets.

A torchvision that cannot be imported is hidden first, so that diffusers loads.
"""

from synthgen.torchvision_guard import hide_broken_torchvision

hide_broken_torchvision()
