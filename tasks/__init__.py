"""One module per DVC stage: read declared inputs, call the library, write declared outputs."""

import os
import sys

if not sys.stderr.isatty():
    # Other libraries' bars: noise in a log. betaflow's own progress is lines there.
    os.environ.setdefault("TQDM_DISABLE", "1")
