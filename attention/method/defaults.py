"""What a user moves, and where it stands at first. No torch: the command line shows these."""

STRENGTH = 0.1      # of an edit, as in training, published; a user moves it between 0 and about 0.3
COVERAGE = 0.8      # share of the gate's range that is open
