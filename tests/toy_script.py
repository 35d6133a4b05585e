"""Train the toy, alone or as a launcher's worker: `toy_script.py RUN_DIR STEPS [DROPOUT]`."""

import atexit
import sys
from pathlib import Path

from synthgen.torchvision_guard import hide_broken_torchvision

hide_broken_torchvision()


@atexit.register
def tell_threads():
    """Name the threads that are left; called last, for it is registered first."""
    names = sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    sys.stdout.write(f"threads: {' '.join(names)}\n")


from toy_training import Announcing, toy_settings  # noqa: E402 - it imports diffusers

from synthgen.core.interrupt import Interrupted  # noqa: E402
from synthgen.runtime import build_accelerator  # noqa: E402
from synthgen.training.loop import run  # noqa: E402


def main():
    accelerator = build_accelerator("fp32")
    dropout = float(sys.argv[3]) if len(sys.argv) > 3 else 0.25
    step = Announcing(accelerator, dropout=dropout, pause_s=0.05)
    try:
        run(step, toy_settings(int(sys.argv[2])), Path(sys.argv[1]), accelerator, resume=True)
    except Interrupted as stop:
        sys.stdout.write(f"{stop.code}: {stop.note}\n")


if __name__ == "__main__":
    main()
