"""``python -m medprobe``."""

from medprobe.cli import main

main()
