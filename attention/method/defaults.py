"""What a user moves, and where it stands at first. No torch: the command line shows these."""

STRENGTH = 0.1      # of an edit, as in training, published
STRONGEST = 0.3     # that a page offers; far beyond it faces come apart
STRENGTHS = (0.05, 0.1, 0.15, 0.2)          # of a sheet of edits
COVERAGE = 0.8      # share of the gate's range that is open
