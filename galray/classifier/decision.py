"""What a published classifier looks for, and from which score on: ``decision.json`` in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from galray.core.errors import InputError
from galray.core.storage import Location

DECISION_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """What is looked for, and from which score on.

    Attributes
    ----------
    target : str
    threshold : float
        In [0, 1].
    train_prevalence : float
        Share of positives that the target's probability assumes.
    temperature : float
        How much less sure than its score the classifier may be; see `calibration.shift_prior`. Scores and
        threshold do not know it.
    """

    target: str
    threshold: float
    train_prevalence: float
    temperature: float = 1.0

    @classmethod
    def read(cls, classifier: Location) -> Decision:
        """Read the decision that was published with a classifier.

        Raises
        ------
        InputError
            Where there is none: the classifier looks for no rare target; or it is none of galray's.
        """
        place = classifier / DECISION_FILE
        if not place.exists():
            raise InputError(
                f"{classifier.uri} tells morphology classes apart and looks for no rare target. "
                "Train a classifier with jobs/classify.py --target."
            )
        try:
            return cls(**json.loads(place.read_bytes()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{place.uri} is no decision ({error}). Run jobs/classify.py again.") from error

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)
