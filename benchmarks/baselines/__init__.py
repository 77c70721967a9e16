"""Peers of the detector, each as strong as we can make it, run by the same harness."""

from benchmarks.baselines.padim import PaDiM
from benchmarks.baselines.patchcore import PatchCore
from benchmarks.baselines.per_pixel import PerPixel
from benchmarks.baselines.scratch_autoencoder import ScratchAutoencoder

__all__ = ["PaDiM", "PatchCore", "PerPixel", "ScratchAutoencoder"]
