"""The verbs of the command line, each a thin function: heavy modules are imported when one is called."""
