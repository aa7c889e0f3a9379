"""`python -m studylib` is `study`."""

from studylib.cli import main

main()
