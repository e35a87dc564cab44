"""One trial of a search: the classifiers of one point, a seed after another.

Points are compared by their means over seeds, so a trial is a point: what Optuna is told of it is a mean,
and no lucky seed draws the search after it. The scheduler counts epochs over all seeds. During the first
seed it sees each epoch's figures, then after each seed the mean over those that are through; so at any count
all points have been trained with the same seeds for the same epochs, and what falls behind is stopped at the
cost of one seed or two. Figures of a stopped trial reach Optuna as they are: too low, for it had fewer
epochs, which is right of a point that is not to be tried again. Real galaxies alone are what all is compared
with, and are never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from threading import Event
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.result import DONE

from galray.classifier.judging import PREDICTIONS_FILE
from galray.classifier.loop import MODEL
from galray.classifier.train import CHECKPOINTS, check_lineage, fit
from galray.core.cluster import last_checkpoint
from galray.core.manifest import publish
from galray.core.storage import Location
from galray.core.tracking import Run
from galray.data.lineage import trained_on
from galray.search.records import Figures, TrialRecord, mean_figures
from galray.search.space import Point

if TYPE_CHECKING:
    from galray.search.tune import SearchConfig

STEP = "step"
FOLLOWED = "followed_epochs"  # the scheduler's clock: a trial that has none is never stopped


class Following(TuneReportCallback):
    """Carry a seed's epochs to its record, to the tracked run, and those of the first seed to Ray Tune.

    Parameters
    ----------
    record : TrialRecord
    run : Run
    """

    def __init__(self, record: TrialRecord, run: Run) -> None:
        super().__init__()
        self._record, self._run = record, run
        self._seed, self._tells = 0, False
        self._last: Figures = {}

    def of_seed(self, seed: int, tells: bool) -> Following:
        """Follow this seed from here on; `tells` Ray Tune of each epoch."""
        self._seed, self._tells = seed, tells
        return self

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:  # noqa: ARG002 (Ray's signature)
        self._record.add_epoch(self._seed, metrics[0])
        named = {f"seed-{self._seed}.{name}": value for name, value in metrics[0].items() if name != STEP}
        self._run.metrics(named, step=int(metrics[0][STEP]))
        if self._tells:
            self.tell(metrics[0])

    def tell(self, figures: Mapping[str, float]) -> None:
        """Report to Ray Tune, in the one way that keeps the order of what the training reports."""
        followed = {FOLLOWED: figures[STEP]} if self._record.point.painting else {}
        self._last = {**figures, **followed}
        super().after_report(None, [self._last], None)  # pyright: ignore[reportArgumentType]

    def end(self) -> None:
        """Have Ray Tune stop this trial, and wait for that.

        A trial that simply returns says so on another way than its reports take: where that overtakes the
        last of them, Tune waits for ever.
        """
        super().after_report(None, [{**self._last, DONE: True}], None)  # pyright: ignore[reportArgumentType]
        Event().wait()


def try_point(params: dict[str, Any], config: SearchConfig, search: Location, run: Run) -> None:
    """Train the classifiers of one point, or go on with them; what is through is only told again."""
    record = TrialRecord.of(search, Point(**params["point"]))
    following = Following(record, tracked(record, run))
    through: list[Figures] = []
    for place, seed in enumerate(config.seeds):
        if place == 0:
            for figures in record.epochs(seed):
                following.tell(figures)
        if not record.published(seed):
            if record.ended:
                break
            train_seed(config, record, seed, following.of_seed(seed, tells=place == 0))
        through.append(record.epochs(seed)[-1])
        following.tell({**mean_figures(through), STEP: (place + 1) * config.classify.epochs})
    following.end()


def tracked(record: TrialRecord, run: Run) -> Run:
    """Return the tracked run of a trial, nested under the search's: one, however often it is resumed."""
    run_id = record.run_id
    if not run_id:
        child = run.child(str(record.point), {"galray.point": record.point.key})
        child.params(asdict(record.point))
        run_id = record.begin(child.run_id)
    return Run(run.outbox, run.experiment_id, run_id)


def train_seed(config: SearchConfig, record: TrialRecord, seed: int, following: Following) -> None:
    """Train one classifier and publish it with its predictions; an interrupted training goes on."""
    place, classification = record.seed(seed), config.classification(record.point, seed)
    resolved, parents = {**classification.resolved(), "resume": True}, check_lineage(classification)
    with publish(place, "trial", resolved, parents) as publication:
        result = fit(classification, place, [following])
        with last_checkpoint(result, place) as folder:
            publication.add_folder(folder / MODEL)
            publication.write(PREDICTIONS_FILE, (folder / PREDICTIONS_FILE).read_bytes())
        publication.write("validation.json", json.dumps(record.epochs(seed)[-1]))
        publication.lineage = trained_on(parents, classification.read_labelled())
    (place / CHECKPOINTS).delete()


class EndTrials(Callback):
    """Take note, on the driver, of trials that are over: a trial that is stopped early cannot say so itself.

    Parameters
    ----------
    search : Location
    run : Run
    figures : sequence of str
        What is tracked of a trial's last report.
    """

    def __init__(self, search: Location, run: Run, figures: Sequence[str]) -> None:
        self._search, self._run, self._figures = search, run, figures

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 (Ray's signature)
        record = TrialRecord.of(self._search, Point(**trial.config["point"]))
        if record.ended:
            return
        last = trial.last_result
        known = {name: last[name] for name in self._figures if name in last}
        self._child(record).metrics(known, step=int(last.get(STEP, 0)))
        self._child(record).end()
        record.end()  # last: whoever is killed before this ends the tracked run when resumed

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002 (Ray's signature)
        self._child(TrialRecord.of(self._search, Point(**trial.config["point"]))).end("FAILED")

    def _child(self, record: TrialRecord) -> Run:
        return Run(self._run.outbox, self._run.experiment_id, record.run_id)
