"""The report of a study: verdicts, tables, and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import rc_context

from galray.core.intervals import Estimate
from galray.core.pictures import blank_figure
from galray.evaluation.figures import STYLE
from galray.evaluation.report import Picture, Report, Section, Verdict, Word
from galray.search.comparison import Found
from galray.search.experiment import StudyConfig
from galray.search.methods import METHODS
from galray.search.outcome import Outcome
from galray.search.ranking import told
from galray.search.settings import class_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOAL = 0.05
_BASELINES = ("#4d4d4d", "#7f7f7f", "#a6a6a6", "#0072b2", "#56b4e9")
_AUGMENTED = ("#d55e00", "#e69f00", "#cc79a7", "#009e73", "#882255", "#ddaa33", "#6a3d9a")


def study_report(config: StudyConfig, outcomes: Sequence[Outcome]) -> Report:
    """Return the report of a study."""
    names = class_names(config.classify.target)
    shown = names[:1] if config.classify.target else names
    with rc_context(dict(STYLE)):
        pictures = _pictures(config, outcomes)
    sections = [
        _differences(config, outcomes, pictures["differences"]),
        _by_method(
            config, outcomes, f"Test {_figure(config)}", lambda of: told(of.main), pictures["methods"]
        ),
    ]
    for index, name in enumerate(shown):
        of_class = name.replace("_", " ")
        sections += [
            _by_method(
                config, outcomes, f"Completeness: {of_class}", lambda of, i=index: told(of.completeness[i])
            ),
            _by_method(config, outcomes, f"Purity: {of_class}", lambda of, i=index: told(of.purity[i])),
        ]
    return Report(
        "Does it help to learn from synthetic galaxies?",
        {
            "galaxies": config.location(config.galaxies).uri,
            "seeds": f"{len(config.seeds)}: each chooses other labels",
            "judged": _judged(config),
            "chosen": "the best baseline, and the best augmented method, by validation galaxies",
        },
        [_verdict(config, outcome) for outcome in outcomes],
        sections,
    )


def _judged(config: StudyConfig) -> str:
    named = "" if config.classify.target else "; classes are named at those that validation likes best"
    return f"on test galaxies, at the shares that they have{named}"


def _figure(config: StudyConfig) -> str:
    return "average precision" if config.classify.target else "macro F1"


def _verdict(config: StudyConfig, outcome: Outcome) -> Verdict:
    goal = f"{outcome.setting}: at least {GOAL:+.2f} {_figure(config)} over the best baseline"
    difference = outcome.difference
    if difference is None:
        return Verdict(goal, "no method of one kind could learn", "not measured")
    return Verdict(goal, _signed(difference), _word(difference))


def _word(difference: Estimate) -> Word:
    """Reached where the gain is large enough and its interval excludes zero."""
    if difference.value >= GOAL and difference.low > 0:
        return "reached"
    return "missed" if difference.high < GOAL else "undecided"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _differences(config: StudyConfig, outcomes: Sequence[Outcome], picture: Picture) -> Section:
    columns = [
        "setting",
        "best baseline",
        "its test figure",
        "best augmented",
        "its test figure",
        "difference",
    ]
    rows = [
        [
            str(one.setting),
            *(_named(one, one.baseline)),
            *(_named(one, one.augmented)),
            _signed(one.difference) if one.difference else "none",
        ]
        for one in outcomes
    ]
    if config.classify.target:
        columns.append(f"found at purity {config.least_purity:g}: baseline, augmented")
        rows = [[*row, _counts(one)] for row, one in zip(rows, outcomes, strict=True)]
    return Section(
        "Synthetic galaxies against the best baseline",
        f"{_figure(config)}, mean over {len(config.seeds)} seeds; the difference's 95% interval is that of a "
        "bootstrap over galaxies and seeds, in pairs.",
        columns,
        rows,
        [picture],
    )


def _named(outcome: Outcome, name: str) -> list[str]:
    return [METHODS[name].title, told(outcome.judged[name].main)] if name else ["none can learn", "none"]


def _counts(outcome: Outcome) -> str:
    found = [outcome.found.get(name) for name in (outcome.baseline, outcome.augmented)]
    return ", ".join(f"{one.value:.1f}" if one else "none" for one in found)


def _by_method(
    config: StudyConfig,
    outcomes: Sequence[Outcome],
    title: str,
    cell: Callable[[Found], str],
    *pictures: Picture,
) -> Section:
    rows = [
        [
            METHODS[name].title,
            *(cell(one.judged[name]) if name in one.judged else "cannot learn" for one in outcomes),
        ]
        for name in config.methods
    ]
    text = "Means over seeds with 95% intervals (Student's t)."
    return Section(title, text, ["method", *(str(one.setting) for one in outcomes)], rows, pictures)


def _pictures(config: StudyConfig, outcomes: Sequence[Outcome]) -> dict[str, Picture]:
    figure = _figure(config)
    return {
        "methods": Picture.of(
            "methods.png",
            methods_figure(config, outcomes),
            f"Test {figure} of each method, with 95% intervals.",
        ),
        "differences": Picture.of(
            "differences.png",
            differences_figure(outcomes),
            f"Gain in {figure} over the best baseline; the goal is dashed.",
        ),
    }


def methods_figure(config: StudyConfig, outcomes: Sequence[Outcome]) -> Figure:
    """Draw the main figure of every method in every setting: greys and blues are baselines."""
    figure = blank_figure(10, 3.8)
    ax = figure.subplots()
    colours = {True: iter(_AUGMENTED), False: iter(_BASELINES)}
    for place, name in enumerate(config.methods):
        here = [(x, one.judged[name].main) for x, one in enumerate(outcomes) if name in one.judged]
        offset = 0.08 * (place - (len(config.methods) - 1) / 2)
        _errorbars(
            ax,
            [x + offset for x, _ in here],
            [estimate for _, estimate in here],
            color=next(colours[METHODS[name].augmented], "black"),
            label=METHODS[name].title,
        )
    ax.set_xticks(range(len(outcomes)), [str(one.setting) for one in outcomes], rotation=15)
    ax.set_ylabel(f"test {_figure(config)}")
    figure.legend(frameon=False, fontsize=7, loc="outside right center")
    return figure


def _errorbars(ax: Any, places: Sequence[float], estimates: Sequence[Estimate], **style: Any) -> None:
    value, low, high = (np.array([getattr(e, part) for e in estimates]) for part in ("value", "low", "high"))
    reach = np.nan_to_num(np.abs([value - low, high - value]))  # one seed has no interval
    ax.errorbar(places, value, yerr=reach, fmt="o", markersize=4, lw=1.1, **style)


def differences_figure(outcomes: Sequence[Outcome]) -> Figure:
    """Draw the gain over the best baseline in every setting."""
    figure = blank_figure(8, 0.4 * len(outcomes) + 1.1)
    ax = figure.subplots()
    measured = [(place, one.difference) for place, one in enumerate(outcomes) if one.difference]
    for place, difference in measured:
        reach = [[difference.value - difference.low], [difference.high - difference.value]]
        ax.errorbar(difference.value, place, xerr=reach, fmt="o", color=_AUGMENTED[0], markersize=4)
    ax.axvline(0, color="black", lw=0.6)
    ax.axvline(GOAL, color="black", lw=0.6, ls="--")
    ax.set_yticks(range(len(outcomes)), [str(one.setting) for one in outcomes])
    ax.set(xlabel="difference", ylim=(len(outcomes) - 0.5, -0.5))
    return figure


def table_of(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row for each setting and method with its main figure, for other programs."""
    return pd.DataFrame(
        [
            {"setting": one.setting.key, "method": name, **of.main.as_dict(), "best": name in _best(one)}
            for one in outcomes
            for name, of in one.judged.items()
        ]
    )


def _best(outcome: Outcome) -> tuple[str, str]:
    return outcome.baseline, outcome.augmented
