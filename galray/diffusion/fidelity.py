"""How near one set of galaxies comes to another, and how near single galaxies come to single ones.

Distances between sets are taken in the features of a classifier, or of one measured quantity. Their
size means little alone: the floor, one half of the real galaxies against the other half at the same
counts and in the same mix of classes, says what a perfect painter would reach (`matched_draws`).
A figure for which there are too few galaxies is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

ORIENTATIONS = 8  # four turns, each mirrored or not


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance of two sets, each taken to be Gaussian.

    .. math:: |\\mu_a - \\mu_b|^2 + \\mathrm{tr}(S_a + S_b - 2 (S_a S_b)^{1/2})

    Parameters
    ----------
    a, b : ndarray of float, shape (n, d) and (m, d)
        Features; n and m of two or more.

    Notes
    -----
    Heusel et al. 2017 (arXiv:1706.08500), equation 6. The estimate is biased upwards, the more so the
    fewer the galaxies: compare figures at equal counts only.
    """
    if min(len(a), len(b)) < 2:
        return np.nan
    a, b = a.astype(np.float64), b.astype(np.float64)
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # tr (S_a S_b)^1/2 is that of the symmetric R S_b R with R = S_a^1/2, whose eigenvalues are real
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(min=0)).sum()
    return float(max(means + np.trace(cov_a) + np.trace(cov_b) - 2 * cross, 0.0))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased squared maximum mean discrepancy under the kernel (x·y / d + 1)³.

    Parameters
    ----------
    a, b : ndarray of float, shape (n, d) and (m, d)
        Features; n and m of two or more.

    Notes
    -----
    The kernel distance KID of Bińkowski et al. 2018 (arXiv:1801.01401), equation 4. Its mean is 0 for
    two samples of one distribution, so that single estimates may be negative.
    """
    if min(len(a), len(b)) < 2:
        return np.nan
    a, b = a.astype(np.float64), b.astype(np.float64)
    within = (_off_diagonal_mean(_cubic_kernel(x, x)) for x in (a, b))
    return float(sum(within) - 2 * _cubic_kernel(a, b).mean())


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def _off_diagonal_mean(kernel: np.ndarray) -> float:
    n = len(kernel)
    return (kernel.sum() - kernel.trace()) / (n * (n - 1))


def coverage(points: np.ndarray, support: np.ndarray, k: int = 3) -> float:
    """Return the share of `points` that lie on the manifold which `support` spans.

    The manifold is the union of balls around each point of the support that reach to its k-th nearest
    neighbour. Precision is the coverage of synthetic galaxies by real ones, recall that of real galaxies
    by synthetic ones.

    Parameters
    ----------
    points : ndarray of float, shape (n, d)
    support : ndarray of float, shape (m, d)
        More than k.
    k : int

    Notes
    -----
    Kynkäänniemi et al. 2019 (arXiv:1904.06991), equations 1 and 2. Needs m x m + n x m distances.
    """
    if not len(points) or len(support) <= k:
        return np.nan
    radii = np.partition(cdist(support, support), k, axis=1)[:, k]  # its nearest is itself
    return float((cdist(points, support) <= radii).any(axis=1).mean())


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Wasserstein-1 distance of two samples of one quantity, in its own unit.

    NaN entries, which could not be measured, are left out.
    """
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    return float(wasserstein_distance(a, b)) if len(a) and len(b) else np.nan


class Draw(NamedTuple):
    """Rows of equal counts and equal classes: two disjoint halves of the real, and synthetic ones."""

    real: np.ndarray
    other_real: np.ndarray
    synthetic: np.ndarray


def matched_counts(
    real: np.ndarray, synthetic: np.ndarray, parts: int = 1, limit: int | None = None
) -> dict[int, int]:
    """Return how many of each class can be drawn from both sets in the real mix of classes.

    Parameters
    ----------
    real, synthetic : ndarray of int, shape (n,) and (m,)
        Class of each galaxy; -1 (unknown) and classes that only one set has are left out.
    parts : int
        Into how many disjoint samples the real ones are cut.
    limit : int, optional
        Largest total.
    """
    shared = np.intersect1d(real[real >= 0], synthetic)
    available = {int(c): int((real == c).sum()) // parts for c in shared}
    painted = {c: int((synthetic == c).sum()) for c in available}
    share = min((painted[c] / n for c, n in available.items() if n), default=0.0)
    if limit is not None:
        share = min(share, limit / max(sum(available.values()), 1))
    return {c: int(min(share, 1.0) * n) for c, n in available.items()}


def matched_draws(
    real: np.ndarray, synthetic: np.ndarray, *, seed: int, count: int = 20, limit: int = 2000
) -> Iterator[Draw]:
    """Draw two disjoint halves of the real galaxies and as many synthetic ones of the same classes.

    Parameters
    ----------
    real, synthetic : ndarray of int, shape (n,) and (m,)
        Class of each galaxy; see `matched_counts`.
    seed : int
    count : int
        Draws; they share galaxies, so that their spread says how far a figure depends on the draw.
    limit : int
        Most galaxies of one draw's halves: the time of a draw grows with its square.
    """
    rng = np.random.default_rng(seed)
    counts = matched_counts(real, synthetic, parts=2, limit=limit)
    for _ in range(count):
        both = draw_classes(real, {c: 2 * n for c, n in counts.items()}, rng)  # of even length, by class
        yield Draw(both[::2], both[1::2], draw_classes(synthetic, counts, rng))


def draw_classes(classes: np.ndarray, counts: dict[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw rows of each class without replacement: int64, class after class, each in random order."""
    rows = [rng.permutation(np.flatnonzero(classes == c))[:n] for c, n in counts.items()]
    return np.concatenate([np.empty(0, dtype=np.int64), *rows])


class Nearest(NamedTuple):
    """The nearest of some galaxies to each of some others: `distance` float32 [n], `galaxy_id` int64 [n]."""

    distance: np.ndarray
    galaxy_id: np.ndarray


def nearest_features(queries: np.ndarray, references: np.ndarray, galaxy_id: np.ndarray) -> Nearest:
    """Return the nearest reference to each query in features, by Euclidean distance.

    Parameters
    ----------
    queries : ndarray of float32, shape (n, d)
    references : ndarray of float32, shape (m, d)
    galaxy_id : ndarray of int64, shape (m,)
        Of the references.
    """
    return _nearest(queries, references, queries @ references.T, galaxy_id)


def nearest_pixels(queries: np.ndarray, references: np.ndarray, galaxy_id: np.ndarray) -> Nearest:
    """Return the nearest reference to each query in pixels, whichever way either is turned or mirrored.

    Parameters
    ----------
    queries : ndarray of uint8, shape (n, H, H, 3)
    references : ndarray of uint8, shape (m, H, H, 3)
    galaxy_id : ndarray of int64, shape (m,)
        Of the references.

    Returns
    -------
    Nearest
        The distance is the root mean square difference of pixels, on a scale from black 0 to white 1.
    """
    flat = _flat_pixels(queries)
    turned = (_flat_pixels(way) for way in orientations(references))
    products = np.maximum.reduce([flat @ way.T for way in turned])
    return _nearest(flat, _flat_pixels(references), products, galaxy_id)


def _flat_pixels(images: np.ndarray) -> np.ndarray:
    """Return float32 (n, pixels), scaled so that a Euclidean distance is a root mean square."""
    flat = images.reshape(len(images), -1).astype(np.float32) / 255
    return flat / np.float32(np.sqrt(flat.shape[1]))


def orientations(images: np.ndarray) -> Iterator[np.ndarray]:
    """Yield (n, H, H, ...) images in all eight ways to turn and mirror a square."""
    for mirrored in (images, images[:, :, ::-1]):
        for turns in range(ORIENTATIONS // 2):
            yield np.rot90(mirrored, turns, axes=(1, 2))


def _nearest(queries: np.ndarray, references: np.ndarray, products: np.ndarray, ids: np.ndarray) -> Nearest:
    """Find each query's nearest from the scalar products (n, m): |q - r|² = |q|² + |r|² - 2 q·r."""
    norms = np.square(references).sum(axis=1)
    excess = norms[None] - 2 * products
    best = excess.argmin(axis=1)
    squared = np.square(queries).sum(axis=1) + excess[np.arange(len(queries)), best]
    return Nearest(np.sqrt(squared.clip(min=0)), ids[best])
