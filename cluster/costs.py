"""What a survey takes on a cluster: hours and dollars, from measured rates and stated prices.

    python -m cluster.costs      # the table that the README shows

Estimates, for the order of magnitude: rates grow with cores and machines, a core of the machine that was
measured counts as one of a rented machine's, and nothing that all share, such as the bucket, holds anybody
up. Disks, storage, requests, traffic and the minutes in which machines start are not counted; nor is
training, which does not grow with the survey.
"""

from __future__ import annotations

from dataclasses import dataclass

from galray.core.errors import ConfigError


@dataclass(frozen=True)
class Machine:
    """A machine to rent.

    Attributes
    ----------
    name : str
        As the cloud calls it.
    cores, gpus : int
        Virtual cores, as the cloud counts them.
    on_demand_usd_per_h, spot_usd_per_h : float
        US dollars an hour.
    """

    name: str
    cores: int
    gpus: int
    on_demand_usd_per_h: float
    spot_usd_per_h: float


@dataclass(frozen=True)
class Rates:
    """Images a second.

    Attributes
    ----------
    ingest_per_core, scan_per_core : float
        Of one core: the whole `ingest`, with headers checked; the whole `scan`, which cuts and scores.
    cutouts_per_core : float
        Of one core that does nothing but cut, for a GPU.
    scores_per_gpu : float
        Of one GPU.
    """

    ingest_per_core: float
    scan_per_core: float
    cutouts_per_core: float
    scores_per_gpu: float

    def ingest(self, machine: Machine) -> float:
        """Return the images a second that a machine takes in."""
        return machine.cores * self.ingest_per_core

    def scan(self, machine: Machine) -> float:
        """Return the sources a second that a machine scans: its cores cut for its GPUs, or do it all."""
        if machine.gpus:
            return min(machine.cores * self.cutouts_per_core, machine.gpus * self.scores_per_gpu)
        return machine.cores * self.scan_per_core


@dataclass(frozen=True)
class Cost:
    """What a piece of work takes: hours, and US dollars on demand and with spot workers."""

    hours: float
    on_demand_usd: float
    spot_usd: float


# AWS, us-east-1, Linux: the list price on demand, and the median of the zones' spot prices, from SkyPilot's
# catalogue (skypilot-org/skypilot-catalog, catalogs/v9/aws/vms.csv at 2c3d7ea), read on 2026-11-26.
HEAD = Machine("m7i.xlarge", 4, 0, on_demand_usd_per_h=0.2016, spot_usd_per_h=0.2016)
CPU = Machine("m7i.4xlarge", 16, 0, on_demand_usd_per_h=0.8064, spot_usd_per_h=0.3272)
GPU = Machine("g6.2xlarge", 8, 1, on_demand_usd_per_h=0.9776, spot_usd_per_h=0.5019)

# Measured, as docs/results.md tells, but for the last one, which is assumed.
RATES = Rates(
    ingest_per_core=6671 / 2,
    scan_per_core=355 / 2,
    cutouts_per_core=3448 / 2,
    scores_per_gpu=10_000,
)

GALAXY_ZOO_2 = ("Galaxy Zoo 2", 240_000)
SURVEYS = (("DESI Legacy Surveys", 1_000_000_000), ("LSST", 20_000_000_000))
CLUSTERS = ((CPU, 20), (GPU, 16))  # as many as cluster/aws.yaml lets come


def cost(images: float, images_per_s: float, machine: Machine, count: int, head: Machine = HEAD) -> Cost:
    """Return what a number of machines and their head, which is never a spot machine, take for some images.

    Parameters
    ----------
    images : float
        Images, or sources of a catalogue.
    images_per_s : float
        Of one machine, see `Rates`.
    machine : Machine
    count : int
        Of such machines.
    head : Machine

    Raises
    ------
    ConfigError
        Less than nothing is asked for, or nobody does the work.
    """
    if images < 0 or images_per_s <= 0 or count < 1:
        raise ConfigError(
            f"{images} images at {images_per_s} a second on {count} machines: give no fewer than 0 images, a "
            "rate above 0, and at least 1 machine."
        )
    hours = images / (images_per_s * count) / 3600
    prices = (machine.on_demand_usd_per_h, machine.spot_usd_per_h)
    on_demand, spot = (hours * (count * price + head.on_demand_usd_per_h) for price in prices)
    return Cost(hours, on_demand, spot)


def table() -> str:
    """Return the README's table: what Galaxy Zoo 2, the DESI Legacy Surveys and LSST take, as Markdown."""
    name, images = GALAXY_ZOO_2
    rows = [
        _row(f"{name}, {images:,} images: ingest", CPU, 1, images, RATES.ingest(CPU)),
        _row(f"{name}, {images:,} images: scan", CPU, 1, images, RATES.scan(CPU)),
    ]
    rows += [
        _row(f"{name}, {sources:,} sources: scan", machine, count, sources, RATES.scan(machine))
        for name, sources in SURVEYS
        for machine, count in CLUSTERS
    ]
    head = ["| work | machines | sources a second | time | on demand | spot |", "| --- " * 6 + "|"]
    return "\n".join([*head, *rows])


def _row(work: str, machine: Machine, count: int, images: int, images_per_s: float) -> str:
    taken = cost(images, images_per_s, machine, count)
    cells = [
        work,
        f"{count} x {machine.name}{' (GPU rate assumed)' if machine.gpus else ''}",
        f"{count * images_per_s:,.0f}",
        _time(taken.hours),
        _dollars(taken.on_demand_usd),
        _dollars(taken.spot_usd),
    ]
    return f"| {' | '.join(cells)} |"


def _time(hours: float) -> str:
    if hours < 2 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _dollars(usd: float) -> str:
    if usd < 0.01:
        return "under $0.01"
    return f"${usd:,.2f}" if usd < 100 else f"${float(f'{usd:.3g}'):,.0f}"


if __name__ == "__main__":
    print(table())
