"""Keep the libraries' chatter out of a job's log."""

import logging
import os
import warnings

import ray

_CHATTY = ("ray.data", "ray.train", "ray.tune", "alembic", "mlflow")


def quiet_driver() -> None:
    """In the driver, let libraries speak up from warnings on, and Ray Data tell its progress."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    progress = logging.getLogger("ray.data._internal.progress.logging_progress")
    progress.setLevel(logging.INFO)
    progress.addFilter(_tells_progress)
    if not os.environ.get("RAY_ADDRESS"):
        # A Ray of the job's own counts late which cores are free again: nobody else has them.
        logging.getLogger("ray.data.dataset").addFilter(_tells_no_want_of_cores)
    _silence_ray_about_itself()


def quiet_worker() -> None:
    """In a worker, let libraries speak up from warnings on; Ray calls this in each that it starts.

    What galray itself has to tell goes through `galray.core.cluster.say`, not through logging.
    """
    # Not by loggers' levels: Ray Data and Ray Train set theirs anew when a task imports them.
    logging.disable(logging.INFO)
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"  # a worker's bars would garble the driver's
    # Ray Train's cleaner looks its cluster up by this: beside a second cluster on the machine it would
    # find neither, and never give back the cores of a finished trial.
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    _silence_ray_about_itself()


def _tells_progress(record: logging.LogRecord) -> bool:
    """Keep how far the whole is, once Ray Data knows of how much: not ``0/?``, nor each operator."""
    return "Total Progress" in record.getMessage() and not record.getMessage().endswith("/?")


def _tells_no_want_of_cores(record: logging.LogRecord) -> bool:
    return "any available CPUs" not in record.getMessage()


def _silence_ray_about_itself() -> None:
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled."
    # "Detected that the Ray Train controller is dead": so it is, after every run.
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(
        logging.ERROR
    )
    # Ray Train sets an option of Ray Data that Ray Data deprecates.
    warnings.filterwarnings("ignore", message=r".*ExecutionOptions\.exclude_resources.*")
