"""track: a subspace that moves, followed through frames with gaps.

Problem: data that live near a low-dimensional subspace which turns slowly
with time (video, arrays of sensors, panels with gaps). Equation: ``y_i = A_i
U(t_i) g_i + noise`` with ``U(t) = H cos(theta t) + Y sin(theta t)``, a geodesic
of the Grassmannian. Input: frames (T, d), NaN where nothing was seen, and
their times. Output: the basis at any time, coefficients, frames without gaps.

`track` does it all, from a file to a report. `GeodesicSubspace` and
`PiecewiseGeodesicSubspace` look at all frames at once, `StaticSubspace` is
what they are compared with (`compare`); `Grouse`, `Petrels`, `Grasta` and
`WindowSubspace` see one frame after another.

Sources: Blocker, Raja, Fessler, Balzano, "Dynamic Subspace Estimation with
Grassmannian Geodesics", arXiv 2303.14851; the streaming methods name theirs.

Examples
--------
>>> import numpy as np
>>> from lowdim.track import GeodesicSubspace
>>> X = np.random.default_rng(0).normal(size=(30, 8))
>>> GeodesicSubspace(2).fit(X).basis().shape
(30, 8, 2)
"""

from lowdim.track.choose import Comparison, compare
from lowdim.track.curve import Curve
from lowdim.track.files import Frames, read_frames
from lowdim.track.geodesic import GeodesicSubspace
from lowdim.track.grasta import Grasta
from lowdim.track.grouse import Grouse
from lowdim.track.petrels import Petrels
from lowdim.track.piecewise import PiecewiseGeodesicSubspace
from lowdim.track.pipeline import track
from lowdim.track.result import TrackResult
from lowdim.track.static import StaticSubspace
from lowdim.track.streaming import StreamingSubspace, Trail
from lowdim.track.window import WindowSubspace

__all__ = [
    "Comparison",
    "Curve",
    "Frames",
    "GeodesicSubspace",
    "Grasta",
    "Grouse",
    "Petrels",
    "PiecewiseGeodesicSubspace",
    "StaticSubspace",
    "StreamingSubspace",
    "TrackResult",
    "Trail",
    "WindowSubspace",
    "compare",
    "read_frames",
    "track",
]
