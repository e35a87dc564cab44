"""Find rare galaxies: paint them, learn them, scan surveys for them."""

import os

__version__ = "0.1.0"

# What the libraries below read once, at their import: so it stands here. A user's own value wins.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",  # unset, the first ray.init would silently switch later jobs to tokens
    "RAY_USAGE_STATS_ENABLED": "0",
    # A worker that has reported twice waits until it is asked: by default that is every two seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Ray's new reader of Parquet starts 32 processes for the footers of each table: 5 s, not 0.2 s.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative --root is the same place in a trial of Ray Tune
    "RAY_AIR_NEW_OUTPUT": "0",  # by default Ray Tune prints a table, however quiet it is asked to be
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keep Ray's hands off CUDA_VISIBLE_DEVICES of CPU tasks
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # Ceph and others refuse trailing checksums
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
