"""The stages of dvc.yaml, one module each.

A queued experiment runs in a copy of the repository. The library next to these files must be found before the installed
one, or the copy would run the code of another working tree.
"""

import os
import sys
from pathlib import Path

# OpenMP threads that spin while they wait make LightGBM many times slower if another process is busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
