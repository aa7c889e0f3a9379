"""`python -m studylib` is `study`."""

from studylib.commands.cli import main

main()
