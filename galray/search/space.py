"""The points of a search: how galaxies are painted, and how many of them are learnt from.

Every dimension is a short list of values, for Optuna too: what it suggests shares its synthetic galaxies
with other points, so that each set is painted once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import product

from optuna.distributions import IntDistribution


@dataclass(frozen=True, order=True)
class Painting:
    """How the galaxies of one synthetic set are painted."""

    guidance_scale: float
    num_steps: int
    condition_weight: float

    def __str__(self) -> str:
        weight = f", weight {self.condition_weight:g}" if self.condition_weight != 1 else ""
        return f"guidance {self.guidance_scale:g}, {self.num_steps} steps{weight}"


@dataclass(frozen=True, order=True)
class Point:
    """One point of a search; all zero where only real galaxies are learnt from.

    Attributes
    ----------
    guidance_scale, num_steps, condition_weight
        See `galray.diffusion.synthesize.SynthesizeConfig`.
    augmentation_ratio : float
        Synthetic galaxies for each real one.
    """

    guidance_scale: float = 0.0
    augmentation_ratio: float = 0.0
    num_steps: int = 0
    condition_weight: float = 0.0

    @property
    def painting(self) -> Painting | None:
        """How the galaxies are painted; None where there are none."""
        if not self.augmentation_ratio:
            return None
        return Painting(self.guidance_scale, self.num_steps, self.condition_weight)

    @property
    def key(self) -> str:
        """A name for folders, and for nothing but this point."""
        if not self.painting:
            return "real-only"
        return (
            f"guidance-{self.guidance_scale:g}_ratio-{self.augmentation_ratio:g}"
            f"_steps-{self.num_steps}_weight-{self.condition_weight:g}"
        )

    def __str__(self) -> str:
        return f"{self.painting}, ratio {self.augmentation_ratio:g}" if self.painting else "real only"


REAL_ONLY = Point()
DIMENSIONS = tuple(f.name for f in fields(Point))


@dataclass(frozen=True)
class Space:
    """The values that each dimension takes; the point of real galaxies alone belongs to every space."""

    guidance_scale: tuple[float, ...]
    augmentation_ratio: tuple[float, ...]
    num_steps: tuple[int, ...]
    condition_weight: tuple[float, ...]

    def points(self) -> list[Point]:
        """Return every point, that of real galaxies alone first."""
        return [REAL_ONLY, *(Point(*values) for values in product(*asdict(self).values()))]

    def paintings(self) -> list[Painting]:
        """Return every way of painting that some point asks for."""
        return sorted({point.painting for point in self.points() if point.painting})

    def one_of_each_set(self) -> list[Point]:
        """Return one point for each synthetic set, and that of real galaxies alone."""
        return list({point.painting: point for point in self.points()}.values())

    def distributions(self) -> dict[str, IntDistribution]:
        """Return what Optuna chooses from: places in each list; place 0 of the ratios is none at all."""
        sizes = {name: len(values) for name, values in asdict(self).items()}
        sizes["augmentation_ratio"] += 1
        return {name: IntDistribution(0, size - 1) for name, size in sizes.items()}

    def point(self, places: Mapping[str, int]) -> Point:
        """Return the point at these places; where no galaxy is learnt from, it does not matter how."""
        if places["augmentation_ratio"] == 0:
            return REAL_ONLY
        found = {**places, "augmentation_ratio": places["augmentation_ratio"] - 1}
        return Point(**{name: values[found[name]] for name, values in asdict(self).items()})

    def places(self, point: Point) -> dict[str, int]:
        """Return where a point lies: the inverse of `point`."""
        if not point.painting:
            return dict.fromkeys(DIMENSIONS, 0)
        found = {name: values.index(getattr(point, name)) for name, values in asdict(self).items()}
        return found | {"augmentation_ratio": found["augmentation_ratio"] + 1}
