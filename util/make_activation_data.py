"""Stories for stage 3 by a stage-2 model: the door of `salmonn/activation_tuning.py`; --help tells all."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from salmonn.activation_tuning import main
from salmonn.common.cli import run_cli

if __name__ == "__main__":
    run_cli(main)
