"""Model folders: safetensors weights and JSON, nothing pickled."""

from pathlib import Path

from galray.core.errors import InputError

_PICKLED_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"})


def refuse_pickled(folder: Path) -> None:
    """Refuse a folder that holds a pickle: opening one can run any code.

    Raises
    ------
    InputError
    """
    pickled = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in _PICKLED_SUFFIXES
    )
    if pickled:
        raise InputError(
            f"{folder} holds pickled files, which can run code when opened: {', '.join(pickled[:3])}. "
            "Convert the weights to safetensors and remove these files."
        )
