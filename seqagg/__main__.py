"""``python -m seqagg`` is ``seqagg``: the command line as a process of its own."""

import gc

from seqagg.cli import main


def run() -> None:
    """Run the command line, and look for garbage seldom.

    What is imported stays. To look for garbage among it while it comes, and once more when Python
    ends, takes a third of the time of a short command.
    """
    gc.set_threshold(20_000, 50)
    try:
        main(prog_name="seqagg")
    finally:
        gc.freeze()


if __name__ == "__main__":
    run()
