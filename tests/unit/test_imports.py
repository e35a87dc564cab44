"""What Ray's many processes import, and what they can do without."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["galray.classifier.labels", "galray.diffusion.prepare"])
def test_tasks_that_decode_images_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
