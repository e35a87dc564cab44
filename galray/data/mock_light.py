"""The light of mock galaxies: profiles, dust screens, seeing and noise, in three bands.

Profiles are evaluated on a grid twice as fine as the detector's, dust is laid over them there,
and the product is blurred by the seeing and binned to detector pixels. Fluxes are nanomaggies
(magnitude zero point 22.5), lengths arcsec, angles degrees from the x axis towards y.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import galsim
import numpy as np
from scipy import fft, ndimage, special

from galray.data.images import BANDS

ZERO_POINT_MAG = 22.5
# SDSS: sky noise per 0.396 arcsec pixel, and photo-electrons per nanomaggy (about 54 s, 2.5 m).
SKY_NOISE = np.array([0.014, 0.022, 0.036], np.float32)
ELECTRONS_PER_NANOMAGGY = np.array([980.0, 940.0, 690.0], np.float32)
SKY_NOISE_SCALE_ARCSEC = 0.396
# A_band / A_r of Galactic dust (Schlegel et al. 1998, SDSS bands).
EXTINCTION = np.array([1.446, 1.0, 0.743], np.float32)
# Seeing relative to r: the atmosphere blurs blue light more.
SEEING = (1.05, 1.0, 0.96)
# How much of the seeing remains for a galaxy's imagined nearby twin; debiased votes refer to it.
NEARBY_SEEING = 0.6
_OVERSAMPLE = 2
_SEEING_STEP_ARCSEC = 0.05

# The disk's bluer arms and redder bar, relative to the galaxy's own colours (g - r, r - i).
ARM_COLOUR = (-0.28, -0.16)
BAR_COLOUR = (0.14, 0.06)
CLUMP_SIZE_ARCSEC = 0.7

Truth = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """A fine square grid of sky around a galaxy.

    Attributes
    ----------
    size_px : int
        Side, in detector pixels.
    pixel_scale_arcsec : float
        Of the detector.
    centre_px : tuple of float
        Where the galaxy's centre falls: (x, y) in detector pixels.
    """

    size_px: int
    pixel_scale_arcsec: float
    centre_px: tuple[float, float]

    @property
    def step_arcsec(self) -> float:
        return self.pixel_scale_arcsec / _OVERSAMPLE

    @cached_property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets from the galaxy's centre; float32 arcsec, shapes (1, N) and (N, 1)."""
        middle_px = (np.arange(self.size_px * _OVERSAMPLE) + 0.5) / _OVERSAMPLE - 0.5
        x, y = ((middle_px - c) * self.pixel_scale_arcsec for c in self.centre_px)
        return x[None, :].astype(np.float32), y[:, None].astype(np.float32)

    def rotated(
        self, angle_deg: float, x0_arcsec: float = 0.0, y0_arcsec: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Offsets along and across an axis at `angle_deg` through a point; float32, shape (N, N)."""
        x, y = self.axes[0] - np.float32(x0_arcsec), self.axes[1] - np.float32(y0_arcsec)
        cos, sin = np.float32(np.cos(np.radians(angle_deg))), np.float32(np.sin(np.radians(angle_deg)))
        return cos * x + sin * y, cos * y - sin * x


def flux_of(mag: Any) -> Any:
    """Return nanomaggies of a magnitude, or of an array of them."""
    return 10 ** (0.4 * (ZERO_POINT_MAG - mag))


def band_fluxes(flux_r: float, g_r: float, r_i: float) -> np.ndarray:
    """Return the flux in g, r, i of a source; float32, shape (3, 1, 1)."""
    ratios = np.array([10 ** (-0.4 * g_r), 1.0, 10 ** (0.4 * r_i)], np.float32)
    return (np.float32(flux_r) * ratios)[:, None, None]


def galaxy_light(truth: Truth, grid: Grid, *, dusty: bool = True, seeing: float = 1.0) -> np.ndarray:
    """Render one galaxy without sky, neighbours or noise.

    Parameters
    ----------
    truth : mapping
        A row of `galray.data.mock.draw_truth`.
    grid : Grid
    dusty : bool
        Whether its dust lane, where it has one, is in front of it.
    seeing : float
        Factor on the seeing.

    Returns
    -------
    ndarray of float32, shape (3, size_px, size_px)
        Nanomaggies per detector pixel, first row at the bottom.
    """
    light = _STRUCTURE[truth["kind"]](truth, grid)
    if truth["disturbance"] > 0:
        light = light + _tail(truth, grid)
    if dusty and truth["dust_tau_r"] > 0:
        light = light * np.exp(-EXTINCTION[:, None, None] * dust_tau(truth, grid))
    return _observe(light, seeing * truth["psf_fwhm_arcsec"], grid)


def lane_contrast(truth: Truth, pixel_scale_arcsec: float, seeing: float = 1.0) -> float:
    """Return how much the attenuation by dust varies over a galaxy, as seen through the atmosphere.

    The scatter of ln(flux with dust / flux without) in g over 1.5 half-light radii, each pixel
    weighted by the root of its light, much as an asinh picture shows it. 0 without a lane.
    """
    if truth["dust_tau_r"] == 0:
        return 0.0
    side = max(int(np.ceil(3.6 * truth["r_half_arcsec"] / pixel_scale_arcsec)), 16)
    grid = Grid(side, pixel_scale_arcsec, ((side - 1) / 2, (side - 1) / 2))
    bare = np.maximum(galaxy_light(truth, grid, dusty=False, seeing=seeing)[0], 1e-9)
    seen = np.maximum(galaxy_light(truth, grid, seeing=seeing)[0], 1e-9)
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) * pixel_scale_arcsec
    weight = np.sqrt(bare) * (np.hypot(x, y) < 1.5 * truth["r_half_arcsec"])
    attenuation = np.log(seen / bare)
    mean = np.average(attenuation, weights=weight)
    return float(np.sqrt(np.average(np.square(attenuation - mean), weights=weight)))


def dust_tau(truth: Truth, grid: Grid) -> np.ndarray:
    """Return the optical depth in r of a galaxy's dust lane; float32, shape (N, N).

    A band of Gaussian section that bends along its length and fades at its ends.
    """
    along, across = grid.rotated(truth["dust_angle_deg"])
    length = truth["dust_length_arcsec"]
    middle = truth["dust_offset_arcsec"] + truth["dust_warp"] * along**2 / length
    section = np.square((across - middle) / truth["dust_width_arcsec"])
    reach = np.square(np.square(along / length))
    return truth["dust_tau_r"] * np.exp(-0.5 * section - reach)


def add_blob(
    gri: np.ndarray, x_px: float, y_px: float, fluxes: np.ndarray, fwhm_px: float, q: float, angle_deg: float
) -> None:
    """Add a small blurred source, an elliptical Moffat (beta = 3.5), in place; fluxes of shape (3, 1, 1)."""
    beta = 3.5
    core = fwhm_px / (2 * np.sqrt(2 ** (1 / beta) - 1))
    reach = int(np.ceil(core * 8))
    height, width = gri.shape[1:]
    left, right = max(int(x_px) - reach, 0), min(int(x_px) + reach + 1, width)
    bottom, top = max(int(y_px) - reach, 0), min(int(y_px) + reach + 1, height)
    if left >= right or bottom >= top:
        return
    x, y = np.arange(left, right)[None, :] - x_px, np.arange(bottom, top)[:, None] - y_px
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    radius2 = (cos * x + sin * y) ** 2 + ((cos * y - sin * x) / q) ** 2
    profile = (beta - 1) / (np.pi * core**2 * q) * (1 + radius2 / core**2) ** -beta
    gri[:, bottom:top, left:right] += fluxes * profile.astype(np.float32)


def add_noise(gri: np.ndarray, pixel_scale_arcsec: float, rng: np.random.Generator) -> np.ndarray:
    """Return `gri`, shape (3, H, W), with the noise of the sky and of its own photons."""
    sky = SKY_NOISE * np.float32(pixel_scale_arcsec / SKY_NOISE_SCALE_ARCSEC)
    photons = np.maximum(gri, 0) / ELECTRONS_PER_NANOMAGGY[:, None, None]
    sigma = np.sqrt(np.square(sky)[:, None, None] + photons)
    return gri + sigma * rng.standard_normal(gri.shape, dtype=np.float32)


def sersic(grid: Grid, n: float, r_half_arcsec: float, q: float, angle_deg: float, **at: float) -> np.ndarray:
    """Return a Sérsic profile of unit total flux per fine pixel; float32, shape (N, N).

    Sérsic (1963); b_n solves Gamma(2n, b) = Gamma(2n) / 2. `r_half_arcsec` is the major half-axis.
    """
    b = special.gammaincinv(2 * n, 0.5)
    total = 2 * np.pi * n * q * r_half_arcsec**2 * b ** (-2 * n) * special.gamma(2 * n)
    along, across = grid.rotated(angle_deg, **at)
    # A fine pixel averages over the cusp: its mean distance from the centre stands in for zero.
    radius2 = np.square(along) + np.square(across / q) + np.float32((0.25 * grid.step_arcsec) ** 2)
    scaled = (radius2 / r_half_arcsec**2) ** np.float32(0.5 / n)
    return np.float32(grid.step_arcsec**2 / total) * np.exp(np.float32(-b) * scaled)


def _fluxes(truth: Truth, share: float, colour: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    flux_r = share * flux_of(truth["mag_r"])
    return band_fluxes(flux_r, truth["g_r"] + colour[0], truth["r_i"] + colour[1])


def _smooth(truth: Truth, grid: Grid) -> np.ndarray:
    """Early types and cigars: one Sérsic profile, redder inwards, with shells in a few."""
    shape = (truth["r_half_arcsec"], truth["q"], truth["angle_deg"])
    profile = sersic(grid, truth["sersic_n"], *shape)
    inner = sersic(grid, truth["sersic_n"], 0.6 * shape[0], *shape[1:])
    redder = (2 * truth["gradient_mag"], truth["gradient_mag"])
    light = _fluxes(truth, 0.7) * profile + _fluxes(truth, 0.3, redder) * inner
    if truth["shell_strength"] > 0:
        light = light + _fluxes(truth, 1.0) * _shells(truth, grid)
    return light


def _shells(truth: Truth, grid: Grid) -> np.ndarray:
    """Two arcs on opposite sides, relics of a merger."""
    along, across = grid.rotated(truth["angle_deg"])
    radius = np.hypot(along, across / truth["q"]) / truth["r_half_arcsec"]
    cosine = along / (radius * truth["r_half_arcsec"] + np.float32(1e-3))
    outer = np.exp(-0.5 * np.square((radius - 1.9) / 0.15)) * np.clip(cosine, 0, 1) ** 3
    inner = np.exp(-0.5 * np.square((radius - 1.4) / 0.15)) * np.clip(-cosine, 0, 1) ** 3
    return _normalised(outer + inner, truth["shell_strength"])


def _edge_on(truth: Truth, grid: Grid) -> np.ndarray:
    """An edge-on exponential disk, (R/h) K1(R/h) sech^2(z/z0) (van der Kruit & Searle 1981), and a bulge."""
    along, across = grid.rotated(truth["angle_deg"])
    h = truth["r_half_arcsec"] / 1.3
    z0 = truth["q"] * h
    radius = np.sqrt(np.square(along) + np.float32((0.2 * h) ** 2)) / np.float32(h)
    height = np.cosh(np.clip(across / z0, -40, 40))
    disk = _normalised(radius * special.k1(radius) / np.square(height), 1.0)
    return _fluxes(truth, 1 - truth["bulge_fraction"]) * disk + _bulge(truth, grid, q=0.7)


def _spiral(truth: Truth, grid: Grid) -> np.ndarray:
    """An inclined exponential disk with bluer, clumpy, logarithmic arms, a bulge, maybe a bar or a ring."""
    along, across = grid.rotated(truth["angle_deg"])
    across = across / np.float32(truth["q"])
    radius, azimuth = np.hypot(along, across), np.arctan2(across, along)
    h = truth["r_half_arcsec"] / 1.68
    disk = np.exp(-radius / np.float32(h))
    arms = disk * _arm_wave(truth, radius, azimuth) * _clumps(truth, grid)
    arms = arms + disk * truth["ring_strength"] * np.exp(-0.5 * np.square((radius / h - 2.0) / 0.22))
    share_bar = truth["bar_strength"]
    share_disk = 1 - truth["bulge_fraction"] - share_bar
    share_arms = share_disk * truth["arm_strength"]
    light = _fluxes(truth, share_disk - share_arms) * _normalised(disk, 1.0)
    light = light + _fluxes(truth, share_arms, ARM_COLOUR) * _normalised(arms, 1.0)
    if share_bar > 0:
        light = light + _fluxes(truth, share_bar, BAR_COLOUR) * _bar(truth, along, across)
    return light + _bulge(truth, grid, q=0.5 + 0.5 * truth["q"])


def _arm_wave(truth: Truth, radius: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Arms along theta = ln(R) / tan(pitch), narrowed, and fading into the centre."""
    inner = max(0.45 * truth["r_half_arcsec"], truth["bar_length_arcsec"])
    turns = np.log(np.maximum(radius, 0.05) / inner) / np.tan(np.radians(truth["arm_pitch_deg"]))
    phase = truth["arm_count"] * (azimuth - truth["handedness"] * turns - np.radians(truth["arm_phase_deg"]))
    ridge = np.exp(2.2 * (np.cos(phase) - 1))
    return ridge / (1 + np.exp(-(radius - inner) / (0.12 * truth["r_half_arcsec"])))


def _clumps(truth: Truth, grid: Grid) -> np.ndarray:
    """Star-forming knots: a log-normal field smooth over CLUMP_SIZE_ARCSEC."""
    rng = np.random.default_rng(truth["galaxy_id"])
    side = grid.size_px * _OVERSAMPLE
    coarse = max(int(side * grid.step_arcsec / CLUMP_SIZE_ARCSEC), 4)
    field = rng.standard_normal((coarse, coarse)).astype(np.float32)
    smooth = ndimage.zoom(field, side / coarse, order=1, output=np.float32, grid_mode=True, mode="grid-wrap")
    return np.exp(truth["clumpiness"] * smooth[:side, :side])


def _bar(truth: Truth, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    angle = np.radians(truth["bar_angle_deg"])
    major = (np.cos(angle) * along + np.sin(angle) * across) / truth["bar_length_arcsec"]
    minor = (np.cos(angle) * across - np.sin(angle) * along) / (0.28 * truth["bar_length_arcsec"])
    return _normalised(np.exp(-(np.abs(major) ** 2.5) - np.abs(minor) ** 2.0), 1.0)


def _bulge(truth: Truth, grid: Grid, q: float) -> np.ndarray:
    if truth["bulge_fraction"] == 0:
        return np.zeros((len(BANDS), 1, 1), np.float32)
    profile = sersic(grid, 2.0, truth["bulge_r_half_arcsec"], q, truth["angle_deg"])
    redder = (truth["bulge_reddening_mag"], 0.4 * truth["bulge_reddening_mag"])
    return _fluxes(truth, truth["bulge_fraction"], redder) * profile


def _tail(truth: Truth, grid: Grid) -> np.ndarray:
    """A lopsided faint plume, as after an encounter."""
    angle = np.radians(truth["disturbance_angle_deg"])
    reach = 1.1 * truth["r_half_arcsec"]
    at = {"x0_arcsec": reach * np.cos(angle), "y0_arcsec": reach * np.sin(angle)}
    turned = truth["disturbance_angle_deg"] + 60.0
    plume = sersic(grid, 0.8, truth["r_half_arcsec"], 0.45, turned, **at)
    return _fluxes(truth, truth["disturbance"], (-0.1, -0.05)) * plume


def _normalised(profile: np.ndarray, total: float) -> np.ndarray:
    return np.asarray(profile * (total / profile.sum()), np.float32)


_STRUCTURE = {
    "early_type": _smooth,
    "cigar": _smooth,
    "edge_on": _edge_on,
    "spiral": _spiral,
    "barred_spiral": _spiral,
}


def _observe(light: np.ndarray, psf_fwhm_arcsec: float, grid: Grid) -> np.ndarray:
    """Blur fine light, shape (3, N, N), by the seeing and bin it to detector pixels."""
    side = light.shape[-1]
    seeing = np.stack(
        [
            _psf_transform(round(psf_fwhm_arcsec * ratio / _SEEING_STEP_ARCSEC), grid.step_arcsec, side)
            for ratio in SEEING
        ]
    )
    spectrum: Any = fft.rfft2(light.astype(np.float32, copy=False))
    blurred: Any = fft.irfft2(spectrum * seeing, s=(side, side))
    blocks = blurred.reshape(len(BANDS), grid.size_px, _OVERSAMPLE, grid.size_px, _OVERSAMPLE)
    return blocks.sum(axis=(2, 4), dtype=np.float32)


@lru_cache(maxsize=256)
def _psf_transform(fwhm_steps: int, step_arcsec: float, side: int) -> np.ndarray:
    """Return the Fourier transform of a Kolmogorov PSF with unit sum, centred on the first pixel."""
    psf = galsim.Kolmogorov(fwhm=fwhm_steps * _SEEING_STEP_ARCSEC)
    image = psf.drawImage(nx=side + 1, ny=side + 1, scale=step_arcsec, method="no_pixel")
    kernel = np.roll(image.array[:side, :side], (-(side // 2), -(side // 2)), axis=(0, 1))
    return np.asarray(fft.rfft2((kernel / kernel.sum()).astype(np.float32)))
