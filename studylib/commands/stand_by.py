"""`python -m studylib.commands.stand_by CHANNEL CARD`: what a study's runs are forked from.

The study starts it for itself and talks to it over CHANNEL, an inherited socket. CARD is 1 where
the machine has a card. Each fork goes on as the command that it was told.

Not covered: all that it does (studylib.running.stand_by).
"""

from __future__ import annotations

import socket
import sys

from studylib.commands.cli import main
from studylib.running.forked_kernel import end_at_once
from studylib.running.stand_by import stand_by

ALSO = (
    "studylib.running.runner",
    "studylib.notebook_views.views",
    "studylib.notebook_views.serve_views",
)

if __name__ == "__main__":
    words = stand_by(socket.socket(fileno=int(sys.argv[1])), sys.argv[2] == "1", ALSO)
    sys.argv = ["study", *(words or ())]
    end_at_once(main if words else lambda: None)
