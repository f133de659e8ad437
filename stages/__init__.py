"""The stages of dvc.yaml, one module each.

A queued experiment runs in a copy of the repository: the library beside these files must win over
the one that was installed, or the copy would run the code of another working tree.
"""

import os
import sys
from pathlib import Path

# OpenMP threads that spin while they wait make LightGBM many times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
