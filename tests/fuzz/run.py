"""`python -m tests.fuzz.run TARGET SECONDS`: fuzz one target; `make fuzz` installs what it needs.

The seeds in corpus/TARGET come first. What is found on the way is kept in .fuzz/TARGET, where the
next run goes on; an input that breaks something is written to the folder as crash-*, and belongs
into corpus/TARGET once the bug is mended.
"""

from __future__ import annotations

import sys
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
KEPT = Path(".fuzz")


def main() -> None:
    """Fuzz until the time is over (exit status 0), or something breaks."""
    target, seconds = sys.argv[1], int(sys.argv[2])
    if target == "protocol":
        from tests.fuzz import protocol

        protocol.run(seconds)
        return
    import atheris

    # Only what is imported in here is watched: nothing of it may be imported before.
    with atheris.instrument_imports(include=["aliasmilter", "authres", "SRS", "dkim"]):
        from tests.fuzz.targets import TARGETS
    if target not in TARGETS:
        sys.exit(f"no target {target!r}: protocol, {', '.join(TARGETS)}")
    folder = KEPT / target
    folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=1024", "-max_len=16384",
        f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    atheris.Setup(["fuzz", *options, str(folder), str(CORPUS / target)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
