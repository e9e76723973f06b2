"""phase: signals from magnitudes, for sequences with too few of them.

Problem: frames of a video are seen only through magnitudes of linear measurements, fewer per frame than
pixels (ptychography of live samples, imaging through scattering media). Equation: ``y_k = |A_k x_k|``, with
all frames one tensor of low Tucker rank, ``X_k = (G x_f f_k) x1 D x2 E``, or one matrix of low rank, ``x_k =
U b_k``. Input: magnitudes (q, m) and A as a tensor or an operator. Output: frames (q, n1, n2), each up to its
own unit factor, and the factors.

`TuckerPhaseRetrieval` and `LowRankPhaseRetrieval` recover sequences, `rwf` single signals.

Sources: Kwon, Li, Sarwate, "Low-rank phase retrieval with structured tensor models", ICASSP 2022
(arXiv 2202.08260); Nayer, Narayanamurthy, Vaswani 2020; Zhang, Zhou, Liang, Chi 2017.
"""

from lowdim.phase.alignment import align, phase, phase_distance, relative_error, smooth_phases
from lowdim.phase.deepinv import DeepinvMeasurement
from lowdim.phase.diffraction import CodedDiffraction, Ptychography
from lowdim.phase.film import read_film
from lowdim.phase.lowrank import LowRankPhaseRetrieval
from lowdim.phase.measurement import DenseMeasurement, Measurement
from lowdim.phase.pipeline import recover
from lowdim.phase.ranks import RankChoice
from lowdim.phase.recording import Recording, read_recording
from lowdim.phase.result import PhaseResult
from lowdim.phase.simulate import simulate
from lowdim.phase.transition import Transition, transition
from lowdim.phase.tucker import TuckerPhaseRetrieval
from lowdim.phase.wirtinger import rwf

__all__ = [
    "CodedDiffraction",
    "DeepinvMeasurement",
    "DenseMeasurement",
    "LowRankPhaseRetrieval",
    "Measurement",
    "PhaseResult",
    "Ptychography",
    "RankChoice",
    "Recording",
    "Transition",
    "TuckerPhaseRetrieval",
    "align",
    "phase",
    "phase_distance",
    "read_film",
    "read_recording",
    "recover",
    "relative_error",
    "rwf",
    "simulate",
    "smooth_phases",
    "transition",
]
