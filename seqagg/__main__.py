"""``python -m seqagg`` is ``seqagg``."""

from seqagg.cli import main

if __name__ == "__main__":
    main(prog_name="seqagg")
