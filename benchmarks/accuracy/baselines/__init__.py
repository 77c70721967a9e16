"""Peers of the detector, each as strong as we can make it, run by the same harness."""

from benchmarks.accuracy.baselines.padim import PaDiM
from benchmarks.accuracy.baselines.patchcore import PatchCore
from benchmarks.accuracy.baselines.per_pixel import PerPixel
from benchmarks.accuracy.baselines.scratch_autoencoder import ScratchAutoencoder

__all__ = ["PaDiM", "PatchCore", "PerPixel", "ScratchAutoencoder"]
