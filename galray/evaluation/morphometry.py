"""What an astronomer measures in a picture of a galaxy: light, colour, size and shape.

Pictures are asinh-stretched, so that these are not the magnitudes and radii of the sky. They are the same
for real and synthetic pictures of one survey, which is what a comparison needs.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from astropy.stats import sigma_clipped_stats
from photutils.segmentation import detect_sources
from scipy.ndimage import gaussian_filter
from statmorph import SourceMorphology

PHOTOMETRY = {
    "brightness": "mean pixel value, 0 black to 1 white",
    "flux": "sum of the pixel values above the sky",
    "g_r": "colour g − r of the central half, in magnitudes of the picture",
    "r_i": "colour r − i of the central half, in magnitudes of the picture",
}
MORPHOMETRY = {
    "size": "half-light radius along the major axis, in pixels",
    "ellipticity": "1 − axis ratio, about the centre of least asymmetry",
    "concentration": "5 log(r80 / r20) (Conselice 2003)",
    "asymmetry": "rotational asymmetry (Conselice 2003)",
    "gini": "Gini coefficient of the light (Lotz et al. 2004)",
    "m20": "second moment of the brightest fifth of the light (Lotz et al. 2004)",
}
_STATMORPH = dict(
    zip(
        MORPHOMETRY,
        ("rhalf_ellip", "ellipticity_asymmetry", "concentration", "asymmetry", "gini", "m20"),
        strict=True,
    )
)
_BAD_FLAG = 2  # of statmorph's 0 good, 1 suspect, 2 bad, 4 catastrophic
_MIN_NOISE = 1.0 / 255  # pictures hold whole levels: no less can be told apart
_DETECTION_SIGMA = 1.5
_SMOOTHING_PX = 1.0
_MIN_AREA_PX = 5


def photometry(images: np.ndarray) -> dict[str, np.ndarray]:
    """Measure the light and colours of pictures.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, H, H, 3)
        Red, green and blue show the bands i, r and g.

    Returns
    -------
    dict of str to ndarray of float64, shape (n,)
        By the names of `PHOTOMETRY`; a colour is NaN where a band is no brighter than the sky.
    """
    light = images.astype(np.float64) / 255
    above_sky = light - _sky(light)[:, None, None]
    quarter = light.shape[1] // 4
    i, r, g = above_sky[:, quarter:-quarter, quarter:-quarter].sum(axis=(1, 2)).T
    return {
        "brightness": light.mean(axis=(1, 2, 3)),
        "flux": above_sky.mean(axis=3).sum(axis=(1, 2)),
        "g_r": _colour(g, r),
        "r_i": _colour(r, i),
    }


def _sky(light: np.ndarray) -> np.ndarray:
    """Return the sky of each channel, (n, 3): the clipped median of a picture's frame."""
    return np.asarray(sigma_clipped_stats(_frame(light), axis=1)[1])


def _frame(light: np.ndarray) -> np.ndarray:
    """Return the pixels (n, frame, channels) of a frame a tenth as wide as the picture."""
    size = light.shape[1]
    frame = np.ones((size, size), dtype=bool)
    width = max(size // 10, 1)
    frame[width:-width, width:-width] = False
    return light[:, frame]


def _colour(blue: np.ndarray, red: np.ndarray) -> np.ndarray:
    ratio = np.full(len(blue), np.nan)
    np.divide(blue, red, out=ratio, where=(blue > 0) & (red > 0))
    return -2.5 * np.log10(ratio)


def morphometry(image: np.ndarray) -> tuple[dict[str, float], str | None]:
    """Measure the shape of the galaxy at the centre of a picture, all bands together.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, H, 3)

    Returns
    -------
    shape : dict of str to float
        By the names of `MORPHOMETRY`; all NaN where it could not be measured.
    failure : str or None
        Why it could not.

    Notes
    -----
    By statmorph (Rodriguez-Gomez et al. 2019, arXiv:1809.08239). The noise is that of the frame; the galaxy
    is the segment, above 1.5 times the noise after slight smoothing, which covers the central pixel.
    """
    unmeasured = dict.fromkeys(MORPHOMETRY, np.nan)
    light = image.mean(axis=2) / 255
    _, sky, noise = sigma_clipped_stats(_frame(light[None, :, :, None])[0, :, 0])
    noise = max(float(noise), _MIN_NOISE)
    segments = _segments(light - sky, noise)
    centre = light.shape[0] // 2
    if segments is None or not segments.data[centre, centre]:
        return unmeasured, "no source at the centre"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # what statmorph warns of, it also flags
            found = SourceMorphology(
                light - sky,
                segments,
                segments.data[centre, centre],
                weightmap=np.full(light.shape, noise),
            )
    except (
        AssertionError,
        ArithmeticError,
        IndexError,
        ValueError,
    ) as error:  # of its own consistency checks
        return unmeasured, f"statmorph gave up: {type(error).__name__}"
    if found.flag >= _BAD_FLAG:
        return unmeasured, "statmorph calls it bad"
    return {name: float(found[quantity]) for name, quantity in _STATMORPH.items()}, None


def _segments(above_sky: np.ndarray, noise: float) -> Any:
    """Return the SegmentationImage of a picture, or None where nothing stands out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was found: told by None
        return detect_sources(
            gaussian_filter(above_sky, _SMOOTHING_PX), _DETECTION_SIGMA * noise, n_pixels=_MIN_AREA_PX
        )
